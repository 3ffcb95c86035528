"""nats-py with its hot path replaced. The only module that touches nats-py's internals (2.16).

What stays nats-py's: server pool, handshake, nkeys, replaying subscriptions after a reconnect. What is ours: the
socket and the parser, so that incoming messages go straight to a plain function (no queue that overflows, no task per
subscription that a `CancelledError` ends), a late PONG cannot end the read loop, and a transport can be aborted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from sage_bus.protocol import Parser
from sage_bus.socket import Socket
from sage_core import BusError

__all__ = ["Handler", "NatsClient"]

log = structlog.get_logger("sage_bus")

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply (empty for none), payload and header block (empty for none)."""

_PING = b"PING\r\n"
_PONG = b"PONG\r\n"


class NatsClient(Client):
    """One connection. `handlers` receive by subscription id; see `Handler`."""

    def __init__(self, *, requires_tls: bool) -> None:
        super().__init__()
        self.socket = Socket()
        self._transport = self.socket
        self._requires_tls = requires_tls
        self._handlers: dict[bytes, Handler] = {}
        self._num_lines = 0
        self._is_delivering = False
        self._afterwards: list[Callable[[], None]] = []
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
        self._handlers[b"%d" % sid] = handler
        return sid, f"SUB {subject} {queue} {sid}\r\n".encode("ascii")

    def unregister(self, sid: int) -> bytes:
        """Stop calling the handler at once; return the command to send."""
        self._subs.pop(sid, None)
        self._handlers.pop(b"%d" % sid, None)
        return self.unsubscribe_command(sid)

    def unsubscribe_command(self, sid: int) -> bytes:
        """Return the command that ends a subscription at the server."""
        return b"UNSUB %d\r\n" % sid

    def write(self, chunk: bytes) -> None:
        """Hand bytes to the socket; only where `can_write`. They leave with this turn of the event loop."""
        self.socket.write(chunk)

    def ping(self, answered: asyncio.Future[Any]) -> None:
        """Write PING after everything written so far; `answered` gets its result with the PONG."""
        self._pongs.append(answered)
        self.socket.write(_PING)

    async def _read_loop(self) -> None:
        """Have the socket's own callback parse what arrives; here, wait for what takes waiting, and for the end."""
        lines: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._num_lines = 0
        parser = Parser(self._on_message, partial(self._on_line, lines))

        def receive(data: bytes) -> None:
            self._is_delivering = True
            try:
                parser.feed(data)
            except BusError as error:
                lines.put_nowait(error)
            finally:
                self._is_delivering = False
                self._call_afterwards()

        async def end() -> None:
            error = await self.socket.ended()
            lines.put_nowait(errors.UnexpectedEOF() if error is None else error)

        self.socket.receive_with(receive)
        ending = asyncio.create_task(end(), name="bus-connection-end")
        try:
            while isinstance(line := await lines.get(), bytes):
                await self._process_line(line)
                self._num_lines -= 1
        finally:
            ending.cancel()
        if isinstance(line, errors.UnexpectedEOF):
            await self._error_cb(line)
        await self._process_op_err(line)

    def soon(self, callback: Callable[[], None]) -> None:
        """See `Bus.soon`."""
        if self._is_delivering:
            self._afterwards.append(callback)
        else:
            asyncio.get_running_loop().call_soon(callback)

    def _call_afterwards(self) -> None:
        callbacks, self._afterwards = self._afterwards, []
        for callback in callbacks:
            try:
                callback()
            except (
                Exception
            ):  # a bug of one must not cost the others their call, nor this connection its reader
                self.num_callback_errors += 1
                log.exception("bus_callback_failed")

    def _on_message(self, sid: bytes, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            handler(subject, reply, payload, block)
        except (Exception, asyncio.CancelledError):
            self.num_callback_errors += 1
            # The 1st, 2nd, 4th, 8th …: a traceback per message would stop everything else.
            if self.num_callback_errors.bit_count() == 1:
                log.exception(
                    "bus_callback_failed",
                    subject=subject.decode("ascii", "replace"),
                    num_errors=self.num_callback_errors,
                )

    def _on_line(self, lines: asyncio.Queue[bytes | Exception], line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"PING":
            self.socket.write(_PONG)
        elif verb == b"PONG" and not self._num_lines:
            self._on_pong()
        elif verb[:3] != b"+OK":
            # A PONG says that all before it was processed, so it does not overtake an error.
            self._num_lines += 1
            lines.put_nowait(line)

    def _on_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            answered = self._pongs.pop(0)
            # A timeout may have cancelled it meanwhile.
            if not answered.done():
                answered.set_result(True)

    async def _process_line(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if verb.upper() == b"PONG":
            self._on_pong()
        elif verb.upper() == b"INFO":
            await self._process_info(json.loads(rest))
        elif verb.upper() == b"-ERR":
            await self._process_err(rest.strip(b" '").decode("utf-8", "replace").lower())
        else:
            log.warning("bus_line_unknown", line=line[:64].decode("ascii", "replace"))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        # A server that is reloaded with a lower limit says so here; nats-py would find out by being cut off.
        self._max_payload = info.get("max_payload", self._max_payload)

    def _connect_command(self) -> bytes:
        if self._requires_tls and not self.socket.is_encrypted:
            # nats-py goes on in plain text where the server offers no TLS, whatever was configured.
            raise errors.Error("nats: TLS is required, and the server offers none")
        return bytes(super()._connect_command())
