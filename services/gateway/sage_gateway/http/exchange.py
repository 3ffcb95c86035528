"""One HTTP request and its answer. Knows no routes; the connection below it knows the order of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from sage_gateway.errors import HttpError
from sage_gateway.http.head import EVENT_STREAM, STATUS_LINES

if TYPE_CHECKING:
    from sage_gateway.http.application import Answerer
    from sage_gateway.http.connection import Connection

__all__ = ["Exchange"]

_CLOSE: Final = b"connection: close\r\n"
_KEEP_ALIVE: Final = b"connection: keep-alive\r\n"
_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
_LARGE_BODY: Final = 2**16
"""From here on, head and body are handed over apart: one system call still, and no copy."""


class Exchange:
    """A request with its answer, which is written at once: nothing here waits.

    `headers` has lower-case names; fields that came more than once are joined with ", " (RFC 9110 section 5.3).
    An answer is `respond`, or `start_events` and then `send` up to `finish`. After the end, and once the client is
    gone, all of them do nothing.
    """

    __slots__ = (
        "_body",
        "_chunks",
        "_connection",
        "_head",
        "_pending",
        "answerer",
        "can_discard",
        "headers",
        "is_complete",
        "is_continued",
        "is_handed_over",
        "is_http_1_0",
        "is_kept_alive",
        "is_over",
        "is_streamed",
        "method",
        "num_body_bytes",
        "num_headers",
        "refusal",
        "target",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        headers: dict[bytes, bytes],
        num_headers: int,
        is_kept_alive: bool,
        is_http_1_0: bool,
    ) -> None:
        self._connection: Connection | None = connection
        self.method = method
        self.target = target
        self.headers = headers
        self.num_headers = num_headers
        self.is_kept_alive = is_kept_alive
        self.is_http_1_0 = is_http_1_0
        self.answerer: Answerer | None = None
        self.refusal: HttpError | None = None
        """Why the body will not be read."""
        self.can_discard = True
        """False where the rest of the body is endless, or may never come: the connection ends with the answer."""
        self.is_over = False
        """True once the answer has ended or nobody waits for it."""
        self.is_complete = False
        self.is_continued = False
        self.is_handed_over = False
        self.num_body_bytes = 0
        self.is_streamed = False
        """True where a silent answer needs comments; see `keep_alive`."""
        self._body = b""
        self._chunks: list[bytes] | None = None
        self._head = b""
        self._pending: list[bytes] = []

    @property
    def path(self) -> str:
        """The target without its query, percent-decoded."""
        return unquote(self.target.partition(b"?")[0].decode("latin-1"))

    @property
    def query(self) -> str:
        """What follows the `?`, as it came."""
        return self.target.partition(b"?")[2].decode("latin-1")

    # The body, filled by the connection.

    def add_body(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.num_body_bytes += len(chunk)
        if not self._body:
            self._body = chunk
        elif self._chunks is None:
            self._chunks = [self._body, chunk]
        else:
            self._chunks.append(chunk)

    def drop_body(self) -> None:
        """Let go of what was received of the body."""
        self._body, self._chunks = b"", None

    def take_body(self) -> bytes:
        """Return the whole body, once."""
        body = self._body if self._chunks is None else b"".join(self._chunks)
        self._body, self._chunks = b"", None
        return body

    def is_continue_expected(self) -> bool:
        """True, once, for a client that waits for a word before it sends the body (RFC 9110 section 10.1.1)."""
        expected = self.headers.get(b"expect")
        if expected is None or self.num_body_bytes or self.is_continued:
            return False
        self.is_continued = True
        return expected.lower() == b"100-continue" and not self.is_http_1_0

    # The answer.

    def respond(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a complete answer; `lines` are header lines, content-type among them, each with its line end."""
        connection = self._connection
        if connection is None:
            return
        is_kept = self._is_connection_kept(connection)
        num_bytes = len(body)
        if not is_kept or self.is_http_1_0:
            lines += self._connection_line(is_kept=is_kept)
        if status == 204:
            head = b"%b%b%b\r\n" % (STATUS_LINES[status], connection.server.date_line, lines)
        else:
            head = b"%b%b%bcontent-length: %d\r\n\r\n" % (
                STATUS_LINES[status],
                connection.server.date_line,
                lines,
                num_bytes,
            )
        if self.method == "HEAD":
            connection.transport.write(head)
        elif num_bytes < _LARGE_BODY:
            connection.transport.write(head + body)
        else:
            connection.transport.writelines((head, body))
        self._end(connection, is_kept=is_kept)

    def keep_alive(self) -> None:
        """Have the answerer asked for a comment whenever the stream has been silent for long, from now on."""
        if self._connection is not None:
            self.is_streamed = True
            self._connection.watch_stream()

    def start_events(self, lines: bytes) -> None:
        """Begin a stream of server-sent events; the head leaves together with the first `send`."""
        connection = self._connection
        if connection is None:
            return
        self._head = b"%b%b%b%b%b%b\r\n" % (
            STATUS_LINES[200],
            connection.server.date_line,
            EVENT_STREAM,
            lines,
            b"" if self.is_http_1_0 else _CHUNKED,
            self._connection_line(is_kept=self._is_stream_kept(connection)),
        )

    def send(self, data: bytes) -> None:
        """Send a part of the stream, in this turn of the event loop, together with all that is sent in it.

        A write is a system call of 6 us, and there is at most one per stream and turn; where the gateway cannot keep
        up with the frames, turns grow and writes become fewer.
        """
        connection = self._connection
        if connection is None:
            return
        if not self._pending:
            connection.server.flush_soon(self)
        self._pending.append(data)

    def flush(self) -> None:
        """Write what is pending. A client that is too far behind is cut off, and its answerer told. For the server."""
        connection = self._connection
        if connection is not None and self._pending:
            connection.write_part(self._take_pending())

    def finish(self, data: bytes) -> None:
        """Send the last part of the stream, which may be empty, and end the answer: one write."""
        connection = self._connection
        if connection is None:
            return
        if data:
            self._pending.append(data)
        data = self._take_pending()
        if not self.is_http_1_0:
            data += b"0\r\n\r\n"
        if data:
            connection.transport.write(data)
        self._end(connection, is_kept=self._is_stream_kept(connection))

    def abandon(self) -> None:
        """The client is gone; from here on nothing is written."""
        self.is_over = True
        self._connection = self.answerer = None
        self._pending.clear()

    def _take_pending(self) -> bytes:
        pending = self._pending
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        if data and not self.is_http_1_0:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        return data

    def _end(self, connection: Connection, *, is_kept: bool) -> None:
        # Both ways, so that a finished request leaves no cycle for the garbage collector.
        self.is_over = True
        self._connection = self.answerer = None
        self._body, self._chunks = b"", None
        connection.answered(self, is_kept=is_kept)

    def _is_connection_kept(self, connection: Connection) -> bool:
        return (
            self.is_kept_alive
            and not connection.server.is_draining
            and (self.is_complete or self.can_discard)
        )

    def _is_stream_kept(self, connection: Connection) -> bool:
        return self._is_connection_kept(connection) and not self.is_http_1_0

    def _connection_line(self, *, is_kept: bool) -> bytes:
        if not is_kept:
            return _CLOSE
        return _KEEP_ALIVE if self.is_http_1_0 else b""
