"""One client connection: requests answered in order, within limits of time, to a client that may be slow or gone.

Requests begin one at a time, so answers keep their order (RFC 9112 section 9.3.2); what arrives while a whole request
is being answered is kept unparsed.

A client that ends its sending side is taken as gone, although HTTP allows it to wait for the answer: FIN is all that
a client which closed its socket sends, and its request must not go on burning an engine.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from sage_gateway.errors import HttpError, error_body
from sage_gateway.http.exchange import Exchange
from sage_gateway.http.head import STATUS_LINES
from sage_gateway.http.reader import DISCARDED_BODIES, INVALID, RequestReader

if TYPE_CHECKING:
    from sage_gateway.http.server import HttpServer

__all__ = ["Connection"]

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_LINGER_SECONDS: Final = 1.0
"""How long what still comes after a last answer is read and thrown away. A client reads only after it has written;
closing on what it sent unread would reset the connection, and the answer with it."""

_MAX_AHEAD: Final = 2**16
"""Bytes of further requests that a client may send before its answer; reading stops there."""


class _Phase(Enum):
    """What the connection waits for, and so which limit of time holds."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    ANSWER = 3
    LINGER = 4


_IDLE: Final = _Phase.IDLE
_ANSWER: Final = _Phase.ANSWER


class Connection(asyncio.Protocol):
    """Hands requests to the server's application, and writes what their exchanges say.

    `deadline` (event-loop time) is when the server is to call `look`.
    """

    __slots__ = (
        "_ahead",
        "_blocked_since",
        "_is_reading_paused",
        "_is_running",
        "_num_discarded",
        "_phase",
        "_reader",
        "_turn",
        "deadline",
        "last_write",
        "server",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.deadline = inf
        self.last_write = 0.0
        self._reader = RequestReader(self, server.settings)
        self._turn: Exchange | None = None
        """The request that is being answered."""
        self._ahead: list[bytes] = []
        self._phase = _IDLE
        self._blocked_since: float | None = None
        self._is_running = False
        self._is_reading_paused = False
        self._num_discarded = 0

    @property
    def is_busy(self) -> bool:
        """True while a request is being answered, or waits for its turn."""
        return self._turn is not None or bool(self._reader.queue)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP alone
        """Begin; a connection too many is told so and closed."""
        self.transport = transport
        server = self.server
        server.connections.add(self)
        if len(server.connections) > server.settings.max_connections:
            self._reader.fail(
                HttpError(503, "server_error", "too_many_connections", "the gateway has too many connections")
            )
            self._run()
            return
        self.deadline = server.now() + server.settings.header_timeout

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever still answers here is told."""
        del exc
        self.deadline = inf
        self._reader.close()
        self._ahead.clear()
        self.server.lost(self)
        self._leave("the client disconnected")

    def eof_received(self) -> bool:
        """Take the client as gone; see the module."""
        self._leave("the client disconnected")
        return False

    def pause_writing(self) -> None:
        """Note since when the client takes too little."""
        now = self.server.now()
        self._blocked_since = now
        self.deadline = min(self.deadline, now + self.server.settings.stall_timeout)

    def resume_writing(self) -> None:
        """Go on with what waited for the client to read."""
        self._blocked_since = None
        if not self._is_running:
            self._run()

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later what belongs to requests after the one that is being answered."""
        reader = self._reader
        if reader.failure is not None:
            self._discard(len(data))
            return
        if (self._turn is not None and reader.reading is None) or self._blocked_since is not None:
            self._keep_ahead(data)
            return
        reader.feed(data)
        self._run()

    def _discard(self, num_bytes: int) -> None:
        """Bound what is read only so that the client sees the last answer: by bytes, as `_LINGER_SECONDS` by time."""
        limits = self.server.settings
        self._num_discarded += num_bytes
        if self._num_discarded <= limits.max_body * DISCARDED_BODIES:
            return
        if self._phase is _Phase.LINGER:
            self.deadline = inf
            self.transport.close()
        elif not self._is_reading_paused:
            self._is_reading_paused = True
            self.transport.pause_reading()

    def _keep_ahead(self, data: bytes) -> None:
        self._ahead.append(data)
        if not self._is_reading_paused and sum(map(len, self._ahead)) > _MAX_AHEAD:
            self._is_reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._is_reading_paused:
            self._is_reading_paused = False
            self.transport.resume_reading()

    # Answering, in order

    def _run(self) -> None:
        """Begin what can begin, and set the deadline."""
        reader = self._reader
        self._is_running = True
        while True:
            self._answer_queued(reader)
            if not self._ahead or self._turn is not None or reader.queue or reader.failure is not None:
                break
            data = b"".join(self._ahead)
            self._ahead.clear()
            self._resume_reading()
            reader.feed(data)
        self._is_running = False
        if reader.failure is not None and self._turn is None and not reader.queue:
            self._say_failure(reader.failure)
        self._set_deadline()

    def _answer_queued(self, reader: RequestReader) -> None:
        if self._turn is not None:
            self._go_on(self._turn)
        while reader.queue and self._turn is None and self._blocked_since is None:
            self._turn = exchange = reader.queue.popleft()
            exchange.answerer = self.server.application.begin(exchange)
            if exchange.is_over:
                exchange.answerer = None
            else:
                self._go_on(exchange)

    def _go_on(self, exchange: Exchange) -> None:
        """Hand over the body where it is whole by now, or why it never will be."""
        answerer = exchange.answerer
        assert answerer is not None
        if exchange.refusal is not None:
            refusal, exchange.refusal = exchange.refusal, None
            answerer.unreadable(refusal)
        elif not exchange.is_complete:
            if exchange.is_continue_expected():
                self.transport.write(_CONTINUE)
        elif not exchange.is_handed_over:
            exchange.is_handed_over = True
            answerer.received(exchange.take_body())

    def answered(self, exchange: Exchange, *, is_kept: bool) -> None:
        """The answer of `exchange` has been written whole. For the exchange."""
        self._turn = None
        if not is_kept:
            self._reader.queue.clear()
            self._ahead.clear()
            self._close(is_lingering=not exchange.is_complete)
        elif not self._is_running:
            if self._ahead or self._reader.queue or self._reader.failure is not None:
                self._run()
            else:
                self._set_deadline()

    def write_part(self, data: bytes) -> None:
        """Write a part of a stream; cut the client off where too much waits for it. For the exchange."""
        transport = self.transport
        if self._blocked_since is not None:
            waiting = transport.get_write_buffer_size() + len(data)
            if waiting > self.server.settings.max_backlog:
                self._cut()
                return
        transport.write(data)
        self.last_write = self.server.now()

    # Time

    def watch_stream(self) -> None:
        """From now on a silent answer needs comments. For the exchange."""
        self.last_write = self.server.now()
        self.deadline = min(self.deadline, self.last_write + self.server.settings.keep_alive_interval)

    def _set_deadline(self) -> None:
        """Set when to look next, where what is waited for has changed."""
        if self._phase is _Phase.LINGER:
            return
        turn, reader, limits = self._turn, self._reader, self.server.settings
        if reader.reading is not None:
            if self._phase is not _Phase.BODY:
                self._phase = _Phase.BODY
                self.deadline = self.server.now() + limits.body_timeout
        elif turn is not None:
            self._phase = _ANSWER
            self.deadline = self.last_write + limits.keep_alive_interval if turn.is_streamed else inf
        elif reader.head_bytes:
            if self._phase is not _Phase.HEAD:
                self._phase = _Phase.HEAD
                self.deadline = self.server.now() + limits.header_timeout
        else:
            self._phase = _IDLE
            self.deadline = self.server.now() + limits.idle_timeout
        if self._blocked_since is not None:
            self._hold_to_stall()

    def _hold_to_stall(self) -> None:
        if self._blocked_since is not None:
            self.deadline = min(self.deadline, self._blocked_since + self.server.settings.stall_timeout)

    def look(self, now: float) -> None:
        """Act on a deadline that has passed."""
        limits = self.server.settings
        if self._blocked_since is not None and now >= self._blocked_since + limits.stall_timeout:
            self._cut()
            return
        turn = self._turn
        match self._phase:
            case _Phase.IDLE | _Phase.LINGER:
                self.deadline = inf
                self.transport.close()
            case _Phase.HEAD:
                limit = limits.header_timeout
                self._reader.fail(
                    HttpError(408, INVALID, "header_timeout", f"headers did not arrive within {limit:g} s")
                )
                self._run()
            case _Phase.BODY:
                self._body_too_slow(turn)
            case _Phase.ANSWER:
                self.deadline = inf
                if turn is not None and turn.answerer is not None and turn.is_streamed:
                    due = self.last_write + limits.keep_alive_interval
                    if now >= due and self._blocked_since is None:
                        turn.answerer.keep_alive()
                        due = now + limits.keep_alive_interval
                    self.deadline = max(due, now)
                self._hold_to_stall()

    def _body_too_slow(self, turn: Exchange | None) -> None:
        limit = self.server.settings.body_timeout
        self.deadline = inf
        if turn is None or turn is not self._reader.reading or turn.answerer is None:
            self.transport.close()
            return
        turn.can_discard = False
        turn.answerer.unreadable(
            HttpError(408, INVALID, "body_timeout", f"the body did not arrive within {limit:g} s")
        )

    # Ends

    def _say_failure(self, error: HttpError) -> None:
        """Answer without the application, as the last words of this connection."""
        if self._phase is _Phase.LINGER or self.transport.is_closing():
            return
        if self._reader.reading is not None:
            # The rest of a request that was answered before its end: nobody waits for another answer.
            self._close(is_lingering=True)
            return
        body = error_body(error)
        self.transport.write(
            b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINES[error.status], self.server.date_line, len(body), body)
        )
        self._close(is_lingering=True)

    def _close(self, *, is_lingering: bool) -> None:
        """Close once all is written; where more may still arrive, only after it had its time to."""
        if not is_lingering:
            self.transport.close()
            return
        self._phase = _Phase.LINGER
        self._reader.fail(HttpError(400, INVALID, "closed", "the connection is being closed"))
        self.deadline = self.server.now() + _LINGER_SECONDS
        self._resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _cut(self) -> None:
        """Drop a client that takes nothing, and what is buffered for it."""
        self.deadline = inf
        self.transport.abort()
        self._leave("the client takes no data")

    def _leave(self, reason: str) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        answerer = turn.answerer
        turn.abandon()
        if answerer is not None:
            answerer.gone(reason)

    def drain(self) -> None:
        """Close now unless a request is being answered; then the answer is the last one."""
        if not self.is_busy and self._phase is not _Phase.LINGER:
            self.transport.close()

    def stop(self) -> None:
        """End what is being answered with an error, and close."""
        turn = self._turn
        self._reader.queue.clear()
        if turn is not None and turn.answerer is not None:
            turn.answerer.stop()
        elif self._phase is not _Phase.LINGER:
            self.transport.close()
