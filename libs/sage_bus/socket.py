"""The socket under nats-py: what arrives goes straight to a plain function, what is written leaves with this turn.

nats-py reads through a stream, a task and a parser of regular expressions; each message waited for two turns of the
event loop more and took 20 us more of it. Here the loop's own callback parses (`protocol`) and handlers run in it. Only
the handshake reads lines.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport

__all__ = ["Socket"]

_WRITE_BUFFER = 256 * 1024


class _Stream(asyncio.Protocol):
    """One connection, from its first byte to its last."""

    def __init__(self, owner: Socket) -> None:
        self.owner = owner
        self.transport: asyncio.Transport | None = None
        self.is_paused = False
        self.is_ended = False
        self.error: Exception | None = None
        self.buffer = bytearray()
        self.receive: Callable[[bytes], None] = self._keep
        self._changed: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        self.owner.num_reads += 1
        self.receive(data)

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error)

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._wake()
        if self.owner.stream is self:
            self.owner.on_writable()

    async def changed(self) -> None:
        """Return after more has arrived, or can be written, or nothing ever will."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    def _keep(self, data: bytes) -> None:
        self.buffer += data
        self._wake()

    def _end(self, error: Exception | None) -> None:
        self.is_ended = True
        self.error = self.error or error
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)


class Socket(TcpTransport):
    """nats-py's transport; one connection after the other. `on_writable` is called when a full buffer has emptied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_reads = 0
        self.num_connects = 0
        self.stream: _Stream | None = None
        self.on_writable: Callable[[], None] = lambda: None

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Open a connection. Raises OSError, TimeoutError."""
        del buffer_size
        loop = asyncio.get_running_loop()
        self.abort()  # a handshake that failed leaves its connection behind
        stream = _Stream(self)
        assert uri.hostname is not None
        assert uri.port is not None
        async with asyncio.timeout(connect_timeout):
            await loop.create_connection(lambda: stream, uri.hostname, uri.port)
        self.stream = stream
        self.num_connects += 1

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        """Go on under TLS. Raises OSError, TimeoutError."""
        del buffer_size
        plain = self._open()
        assert plain.transport is not None
        encrypted = _Stream(self)
        async with asyncio.timeout(connect_timeout):
            transport = await asyncio.get_running_loop().start_tls(
                plain.transport,
                encrypted,
                ssl_context,
                server_hostname=uri if isinstance(uri, str) else uri.hostname,
            )
        assert transport is not None
        encrypted.connection_made(transport)
        self.stream = encrypted

    def receive_with(self, receive: Callable[[bytes], None]) -> None:
        """Hand what arrives on this connection to `receive`, beginning with what is here already."""
        stream = self._open()
        stream.receive = receive
        waiting, stream.buffer = bytes(stream.buffer), bytearray()
        if waiting:
            receive(waiting)

    async def ended(self) -> Exception | None:
        """Wait for the end of this connection; return its cause, None where the server closed it in order."""
        stream = self._open()
        while not stream.is_ended:
            await stream.changed()
        return stream.error

    def write(self, payload: bytes) -> None:
        """Send `payload` with whatever else is written in this turn."""
        stream = self._open()
        assert stream.transport is not None
        stream.transport.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Send each."""
        self.write(b"".join(payload))

    async def readline(self) -> bytes:
        """Return a line of the handshake; what there is of it where the connection ends."""
        stream = self._open()
        while (end := stream.buffer.find(b"\n")) < 0 and not stream.is_ended:
            await stream.changed()
        end = len(stream.buffer) if end < 0 else end + 1
        line = bytes(stream.buffer[:end])
        del stream.buffer[:end]
        return line

    async def drain(self) -> None:
        """Wait until more can be written. Raises OSError where the connection is lost."""
        stream = self._open()
        while stream.is_paused and not stream.is_ended:
            await stream.changed()
        if stream.is_ended:
            raise (
                stream.error if isinstance(stream.error, OSError) else ConnectionResetError("connection lost")
            )

    async def wait_closed(self) -> None:
        """Wait for the end of a connection that is being closed."""
        if self.stream is not None:
            await self.ended()

    def close(self) -> None:
        """Close the connection once what was written has left."""
        if self.stream is not None and self.stream.transport is not None:
            self.stream.transport.close()

    def abort(self) -> None:
        """Drop the connection without waiting for unsent bytes; `close` would wait for a frozen peer for ever."""
        if self.stream is not None and self.stream.transport is not None:
            self.stream.transport.abort()

    def at_eof(self) -> bool:
        """True where nothing more can be read."""
        return self.stream is not None and self.stream.is_ended and not self.stream.buffer

    @property
    def activity(self) -> tuple[int, int]:
        """Changes with every connection made and every read that returned."""
        return self.num_connects, self.num_reads

    @property
    def is_open(self) -> bool:
        """True where what is written may arrive."""
        stream = self.stream
        return (
            stream is not None
            and stream.transport is not None
            and not stream.is_ended
            and not stream.transport.is_closing()
        )

    @property
    def is_full(self) -> bool:
        """True while the peer takes less than was written: `on_writable` tells when it does."""
        return self.stream is not None and self.stream.is_paused

    @property
    def is_encrypted(self) -> bool:
        """True under TLS."""
        stream = self.stream
        return (
            stream is not None
            and stream.transport is not None
            and stream.transport.get_extra_info("ssl_object") is not None
        )

    def __bool__(self) -> bool:
        # nats-py replaces a transport that is false with one of its own.
        return True

    def _open(self) -> _Stream:
        if self.stream is None:
            raise ConnectionResetError("not connected")
        return self.stream
