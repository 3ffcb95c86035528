"""A blocking NATS connection of a few lines: the benchmark must not depend on the client that it measures.

https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

__all__ = ["NatsText", "Published", "receive_stamped", "stamp_arrivals"]

_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("ll")
_MAX_BYTES: Final = 1 << 18


def stamp_arrivals(connection: socket.socket) -> None:
    """Have the kernel note when bytes arrive, so that it does not matter when this process gets to read them."""
    connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def receive_stamped(connection: socket.socket) -> tuple[bytes, int]:
    """Return the next bytes and when the last of them arrived, in nanoseconds of the monotonic clock."""
    data, extra, _, _ = connection.recvmsg(_MAX_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
    ahead = time.time_ns() - time.monotonic_ns()
    for level, kind, content in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(content[: _TIMESPEC.size])
            return data, seconds * 1_000_000_000 + nanoseconds - ahead
    return data, time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Published:
    """A message that was seen."""

    subject: str
    payload: bytes


class NatsText:
    """One connection, logged in with a token. Used as a context manager."""

    def __init__(self, port: int, token: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in = b""
        login = {"verbose": False, "pedantic": False, "headers": True, "auth_token": token, "lang": "python"}
        self.socket.sendall(b"CONNECT " + json.dumps(login).encode() + b"\r\n")
        self.round_trip()

    def __enter__(self) -> NatsText:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def subscribe(self, subject: str) -> None:
        """See what is published on `subject` from the return on."""
        self.socket.sendall(f"SUB {subject} 1\r\n".encode())
        self.round_trip()

    def publish(self, subject: str, payload: bytes) -> None:
        """Publish, and return once the server has it."""
        self.socket.sendall(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload))
        self.round_trip()

    def round_trip(self) -> None:
        """Return once the server has taken everything sent before. Messages on the way are dropped."""
        self.socket.sendall(b"PING\r\n")
        while b"PONG\r\n" not in self._in:
            self._in += self.socket.recv(1 << 16)
        self._in = self._in.partition(b"PONG\r\n")[2]

    def take(self, data: bytes) -> list[Published]:
        """Return the messages that are complete with `data`, what was read from `socket` next."""
        self._in += data
        found: list[Published] = []
        while (end := self._in.find(b"\r\n")) >= 0:
            words = self._in[:end].split()
            if not words or words[0] not in (b"MSG", b"HMSG"):
                if words[:1] == [b"PING"]:
                    self.socket.sendall(b"PONG\r\n")
                self._in = self._in[end + 2 :]
                continue
            size = int(words[-1])
            if len(self._in) < end + 2 + size + 2:
                break
            num_header_bytes = int(words[-2]) if words[0] == b"HMSG" else 0
            payload = self._in[end + 2 + num_header_bytes : end + 2 + size]
            found.append(Published(words[1].decode(), payload))
            self._in = self._in[end + 2 + size + 2 :]
        return found
