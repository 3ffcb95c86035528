"""An HTTP/1.1 client that can misbehave: stop in the middle, read a byte at a time, or leave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Connection", "Head", "request_bytes"]

_LIMIT: Final = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of a response, names in lower case."""

    status: int
    headers: dict[str, str]


def request_bytes(
    method: str, path: str, body: Mapping[str, Any] | bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a whole request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class Connection:
    """One connection to the gateway; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, receive_bytes: int | None = None) -> Connection:
        """Connect to the loopback. A small `receive_bytes` keeps the kernel from reading ahead for a slow client."""
        plain = socket.socket()
        plain.setblocking(False)
        if receive_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=plain, limit=receive_bytes or _LIMIT))

    async def send(self, data: bytes) -> None:
        """Write and wait until the kernel has it."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> Head:
        """Read the status line and the headers."""
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Head(int(lines[0].split()[1]), headers)

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """Yield the body as it comes; chunks one by one."""
        if head.headers.get("transfer-encoding") != "chunked":
            yield await self._reader.readexactly(int(head.headers.get("content-length", "0")))
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)

    async def body(self, head: Head) -> bytes:
        """Read the whole body."""
        return b"".join([piece async for piece in self.pieces(head)])

    async def read(self, num_bytes: int) -> bytes:
        """Read at most so many bytes of whatever comes; empty at the end."""
        return await self._reader.read(num_bytes)

    def abort(self) -> None:
        """End the connection at once, without a goodbye."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """End the connection and wait for that."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return
