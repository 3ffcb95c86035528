"""nats-py with its hot path replaced. The only module that touches nats-py's internals (2.16).

What stays nats-py's: server pool, handshake, TLS, nkeys, replaying subscriptions after a reconnect. What is
ours: incoming messages go straight to a plain function (no queue that overflows, no task per subscription that a
`CancelledError` ends), a late PONG cannot end the read loop, and a transport can be aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

__all__ = ["Handler", "NatsClient"]

log = structlog.get_logger("sage_bus")

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply (empty for none), payload and header block (empty for none)."""

_READ_BYTES = 64 * 1024
_PING = b"PING\r\n"


class _Transport(TcpTransport):
    """Counts what arrives, so that silence shows, and can be aborted, so that a frozen peer cannot hold it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_reads = 0
        self.num_connects = 0

    def write(self, payload: bytes) -> None:
        self._io_writer.write(payload)  # type: ignore[union-attr] # only called once connected

    async def drain(self) -> None:
        await self._io_writer.drain()  # type: ignore[union-attr] # only called once connected

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        del buffer_size
        await super().connect(uri, _READ_BYTES, connect_timeout)
        self.num_connects += 1

    async def read(self, buffer_size: int) -> bytes:
        del buffer_size
        data: bytes = await super().read(_READ_BYTES)
        self.num_reads += 1
        return data

    @property
    def activity(self) -> tuple[int, int]:
        """Changes with every connection made and every read that returned."""
        return self.num_connects, self.num_reads

    @property
    def is_open(self) -> bool:
        return self._io_writer is not None and not self._io_writer.is_closing()

    @property
    def is_encrypted(self) -> bool:
        return self._io_writer is not None and self._io_writer.get_extra_info("ssl_object") is not None

    def abort(self) -> None:
        """Drop the socket without waiting for unsent bytes; `close` would wait for a frozen peer for ever."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def __bool__(self) -> bool:
        # nats-py replaces a transport that is false with one of its own.
        return True


class NatsClient(Client):
    """One connection. `handlers` receive by subscription id; see `Handler`."""

    def __init__(self, *, requires_tls: bool) -> None:
        super().__init__()
        self.socket = _Transport()
        self._transport = self.socket
        self._requires_tls = requires_tls
        self._handlers: dict[int, Handler] = {}
        self.num_callback_errors = 0

    @property
    def is_started(self) -> bool:
        """True once `connect` has begun; nats-py cannot close before that."""
        return self._flush_queue is not None

    @property
    def can_write(self) -> bool:
        """True where a command written now reaches the server, as far as this side can know."""
        return self._status == Client.CONNECTED and self.socket.is_open

    @property
    def is_reading(self) -> bool:
        """False once nobody reads the socket although the client believes that it is connected."""
        return self._reading_task is not None and not self._reading_task.done()

    @property
    def is_reconnect_alive(self) -> bool:
        """False once nobody tries to reconnect although the client believes that it is reconnecting."""
        return self._reconnection_task is not None and not self._reconnection_task.done()

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The version of the server of this connection."""
        version = self.connected_server_version
        version.parse_version()
        # nats-py's own properties parse again where a part is 0; the parsed fields do not.
        return (
            version._major_version or 0,
            version._minor_version or 0,
            version._patch_version or 0,
        )

    def register(self, subject: str, queue: str, handler: Handler) -> tuple[int, bytes]:
        """Add a subscription; return its id and the command to send. It is replayed after a reconnect."""
        self._sid += 1
        sid = self._sid
        # Never started: nats-py keeps it only to send SUB again after a reconnect.
        self._subs[sid] = Subscription(self, sid, subject, queue=queue)
        self._handlers[sid] = handler
        return sid, f"SUB {subject} {queue} {sid}\r\n".encode("ascii")

    def unregister(self, sid: int) -> bytes:
        """Stop calling the handler at once; return the command to send."""
        self._subs.pop(sid, None)
        self._handlers.pop(sid, None)
        return self.unsubscribe_command(sid)

    def unsubscribe_command(self, sid: int) -> bytes:
        """Return the command that ends a subscription at the server."""
        return b"UNSUB %d\r\n" % sid

    def write(self, chunk: bytes) -> None:
        """Hand bytes to the socket; only where `can_write`."""
        self.socket.write(chunk)

    async def drain(self) -> None:
        """Wait until the socket takes more. Raises OSError where the connection is lost."""
        await self.socket.drain()

    def ping(self, answered: asyncio.Future[Any]) -> None:
        """Write PING after everything written so far; `answered` gets its result with the PONG."""
        self._pongs.append(answered)
        self.socket.write(_PING)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            handler(subject, reply, data, headers or b"")
        except (Exception, asyncio.CancelledError):
            self.num_callback_errors += 1
            # The 1st, 2nd, 4th, 8th …: a traceback per message would stop everything else.
            if self.num_callback_errors.bit_count() == 1:
                log.exception(
                    "bus_callback_failed",
                    subject=subject.decode("ascii", "replace"),
                    num_errors=self.num_callback_errors,
                )

    async def _process_pong(self) -> None:
        # nats-py sets a result on a future that a timeout has cancelled; that raises and ends the read loop.
        if self._pongs:
            answered = self._pongs.pop(0)
            if not answered.done():
                answered.set_result(True)
        self._pings_outstanding = 0

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        # A server that is reloaded with a lower limit says so here; nats-py would find out by being cut off.
        self._max_payload = info.get("max_payload", self._max_payload)

    def _connect_command(self) -> bytes:
        if self._requires_tls and not self.socket.is_encrypted:
            # nats-py goes on in plain text where the server offers no TLS, whatever was configured.
            raise errors.Error("nats: TLS is required, and the server offers none")
        return bytes(super()._connect_command())
