"""What leaves: to the socket at once, or into a bounded queue. Publishing never waits, and nothing is sent unasked.

nats-py's own `publish` waits on a full buffer and swallows cancellation there, so none of it is used. A task that wrote
what was queued cost every message a turn of the event loop; uvloop joins what one turn writes anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sage_bus.header_block import age_headers, encode_headers
from sage_bus.nats_client import NatsClient
from sage_core import BusUnavailable, Overloaded

__all__ = ["Outbound", "Postponed", "publish_command"]

_BATCH_BYTES = 256 * 1024
_STALE_SECONDS = 0.05
"""A message that waited longer gets its budget reduced before it is written."""


def publish_command(subject: bytes, reply: bytes, block: bytes, payload: bytes) -> bytes:
    """Return PUB, or HPUB where there is a header block."""
    if not block:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload)
    num_header = len(block)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        subject,
        reply,
        num_header,
        num_header + len(payload),
        block,
        payload,
    )


@dataclass(frozen=True, slots=True)
class Postponed:
    """A message whose caller may be gone, or whose budget smaller, by the time it is written."""

    command: bytes
    subject: bytes
    reply: bytes
    payload: bytes
    headers: Mapping[str, str]
    queued_at: float
    is_wanted: Callable[[], bool] | None

    def render(self, now: float) -> bytes:
        """Return the command to write now, empty where it must not be sent any more."""
        if self.is_wanted is not None and not self.is_wanted():
            return b""
        waited = now - self.queued_at
        if waited < _STALE_SECONDS:
            return self.command
        headers = age_headers(self.headers, waited)
        if headers is None:
            return b""
        return publish_command(self.subject, self.reply, encode_headers(headers), self.payload)


_Entry = bytes | Postponed | asyncio.Future[bool]


class Outbound:
    """What is published goes to the socket at once; where there is none, or a full one, it waits here, in order."""

    def __init__(self, client: NatsClient, *, max_messages: int, max_bytes: int) -> None:
        self._client = client
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._entries: deque[_Entry] = deque()
        self._is_scheduled = False
        self.num_bytes = 0
        self.num_refused = 0
        self.is_closed = False
        client.socket.on_writable = self.resume

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_direct(self) -> bool:
        """True where `write` may be called: nothing waits, and the socket takes more."""
        return not self._entries and self._client.can_write and not self._client.socket.is_full

    def write(self, command: bytes) -> None:
        """Send a command now; only where `is_direct`. Raises BusUnavailable after the end."""
        if self.is_closed:
            raise BusUnavailable("the bus is closed")
        self._client.write(command)

    def push(self, entry: bytes | Postponed) -> None:
        """Queue a message. Raises Overloaded where the queue is full and BusUnavailable after the end."""
        if self.is_closed:
            raise BusUnavailable("the bus is closed")
        size = len(entry) if isinstance(entry, bytes) else len(entry.command)
        if len(self._entries) >= self._max_messages or self.num_bytes + size > self._max_bytes:
            self.num_refused += 1
            raise Overloaded(
                f"{len(self._entries)} messages with {self.num_bytes} bytes wait to be sent",
                retry_after=0.1,
            )
        self.num_bytes += size
        self._append(entry)

    def push_command(self, command: bytes) -> None:
        """Send a SUB or UNSUB, or queue it; it is never refused."""
        if self.is_direct:
            self._client.write(command)
        else:
            self.num_bytes += len(command)
            self._append(command)

    def push_ping(self, answered: asyncio.Future[bool]) -> None:
        """Send a PING, or queue it; `answered` gets its result once the server has processed everything before it."""
        if self.is_direct:
            self._client.ping(answered)
        else:
            self._append(answered)

    def resume(self) -> None:
        """Write again: the connection is up, or the socket takes more."""
        if self._entries and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._write_queued)

    def _append(self, entry: _Entry) -> None:
        self._entries.append(entry)
        if self._client.can_write and not self._client.socket.is_full:
            self.resume()

    def _write_queued(self) -> None:
        """Write a part of what waits, as a full queue must not keep the event loop for itself; then go on."""
        self._is_scheduled = False
        if self._client.can_write and not self._client.socket.is_full and not self.is_closed:
            self._write_some()
            if not self._client.socket.is_full:
                self.resume()

    def _write_some(self) -> None:
        entries = self._entries
        now = asyncio.get_running_loop().time()
        batch: list[bytes] = []
        size = 0
        while entries and size < _BATCH_BYTES:
            entry = entries.popleft()
            if isinstance(entry, bytes):
                command = entry
                self.num_bytes -= len(command)
            elif isinstance(entry, Postponed):
                self.num_bytes -= len(entry.command)
                command = entry.render(now)
            else:
                self._client.write(b"".join(batch))
                batch.clear()
                self._client.ping(entry)
                continue
            batch.append(command)
            size += len(command)
        if batch:
            self._client.write(batch[0] if len(batch) == 1 else b"".join(batch))
