"""Bytes of one connection to requests, within limits of size. Sans-IO: the connection feeds it and sees to the time.

The parser is llhttp, through httptools. What it finds waits in `queue`: requests begin outside of its callbacks, so an
exception in an answerer is no parsing error, and an answer may close the connection that is being parsed.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

import httptools

from sage_gateway.errors import HttpError
from sage_gateway.http.exchange import Exchange
from sage_gateway.settings import GatewaySection

if TYPE_CHECKING:
    from sage_gateway.http.connection import Connection

__all__ = ["DISCARDED_BODIES", "INVALID", "RequestReader"]

INVALID: Final = "invalid_request_error"

_METHODS: Final = {
    method: method.decode()
    for method in (b"GET", b"POST", b"DELETE", b"HEAD", b"OPTIONS", b"PUT", b"PATCH", b"CONNECT", b"TRACE")
}
_VERSIONS: Final = frozenset({"1.1", "1.0"})
_REQUEST_LINE: Final = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}) \S+ HTTP/1\.[01]\r\n")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)([^#]*)", re.IGNORECASE)
DISCARDED_BODIES: Final = 16
"""A refused body is read to its end and thrown away up to this many times the limit, so that the client sees the
answer and keeps its connection; beyond it the connection is closed."""


class RequestReader:
    """Makes an `Exchange` of every request head, and gives it its body.

    `queue` holds those that nobody has taken, `reading` the one whose body is arriving, `failure` why nothing more can
    be read. `head_bytes` is what has arrived of a head that is not complete.
    """

    __deletable__ = ("_parser",)  # mypyc asks for it

    __slots__ = (
        "_connection",
        "_headers",
        "_is_head_repeated",
        "_is_in_head",
        "_limits",
        "_num_body",
        "_num_fed",
        "_num_framing",
        "_num_headers",
        "_num_since_body",
        "_parser",
        "_target",
        "failure",
        "head_bytes",
        "queue",
        "reading",
    )

    def __init__(self, connection: Connection, limits: GatewaySection) -> None:
        self.queue: deque[Exchange] = deque()
        self.reading: Exchange | None = None
        self.failure: HttpError | None = None
        self.head_bytes = 0
        self._connection = connection
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._num_fed = 0
        self._num_body = 0
        self._num_framing = 0
        self._num_since_body = 0
        self._is_in_head = True
        self._is_head_repeated = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._num_headers = 0

    def close(self) -> None:
        """Read nothing more, and let go of the parser, which holds this object in turn."""
        self.queue.clear()
        self.reading = None
        del self._parser

    def fail(self, error: HttpError) -> None:
        """Read nothing more; the first reason stays. A body that was arriving never will."""
        if self.failure is None:
            self.failure = error
        reading = self.reading
        if reading is not None and reading.refusal is None:
            reading.can_discard = False
            reading.refusal = error

    def feed(self, data: bytes) -> None:
        """Parse `data`, unless reading has failed."""
        self._num_fed = num_fed = len(data)
        reading, num_body = self.reading, self._num_body
        if self._is_in_head:
            self.head_bytes += num_fed
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserInvalidMethodError:
            self.fail(_unknown_method(data))
        except httptools.HttpParserError:
            self.fail(_no_http("this is not an HTTP/1.1 request"))
        if self._is_in_head:
            if self.head_bytes > self._limits.max_header_bytes:
                self.fail(self._head_too_large())
        elif reading is not None and reading is self.reading:
            self._bound_framing(num_fed, self._num_body - num_body)

    def _bound_framing(self, num_fed: int, num_body: int) -> None:
        """Bound what surrounds a chunked body: sizes, extensions and trailers, which the parser reads without end.

        A trailer is bounded like a header, as the parser gathers it whole, and all of it by the body that it carries:
        chunks of one byte each are sent with five of framing.
        """
        limit = self._limits.max_header_bytes
        self._num_framing += num_fed - num_body
        self._num_since_body = 0 if num_body else self._num_since_body + num_fed
        if self._num_since_body > limit or self._num_framing > limit + 8 * self._num_body:
            self.fail(self._head_too_large())

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1, as RFC 9110 section 7.8 allows.

        The parser takes an upgrade for granted and ends the message at its head: the body of a POST that offers
        h2c, as Java's HttpClient and `curl --http2` send it, would be lost. A fresh parser is told the framing again.
        """
        framing = [
            b"%b: %b\r\n" % (name, self._headers[name])
            for name in (b"content-length", b"transfer-encoding")
            if name in self._headers
        ]
        self._parser = httptools.HttpRequestParser(self)
        self._is_head_repeated = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
        self._is_head_repeated = False
        if rest:
            self.feed(rest)

    # Callbacks of the parser

    def on_url(self, url: bytes) -> None:
        """Take a part of the target; most come in one. A message begins here."""
        if self._is_head_repeated:
            return
        if self._num_headers:
            self._target = b""
            self._headers = {}
            self._num_headers = 0
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; those after a chunked body are left out."""
        if not self._is_in_head or self._is_head_repeated:
            return
        name = name.lower()
        headers = self._headers
        if name in headers:
            value = headers[name] + b", " + value
        headers[name] = value
        self._num_headers += 1

    def on_headers_complete(self) -> None:
        """Take the end of a head: the request exists from here on."""
        if self._is_head_repeated:
            return
        parser, headers, limits = self._parser, self._headers, self._limits
        # The sum is made only where it can be too large: it costs 1 us.
        if max(self.head_bytes, self._num_fed) > limits.max_header_bytes and self._is_head_oversized():
            self.fail(self._head_too_large())
            raise _Refused
        self._is_in_head = False
        method, version, target, host = (
            parser.get_method(),
            parser.get_http_version(),
            self._target,
            headers.get(b"host"),
        )
        if (host is None and version == "1.1") or (host is not None and b"," in host):
            self.fail(_no_http("exactly one Host is needed (RFC 9112 section 3.2)"))
            raise _Refused
        if version not in _VERSIONS:
            self.fail(HttpError(505, INVALID, "unknown_http_version", "this is an HTTP/1.1 server"))
            raise _Refused
        if not target.startswith(b"/"):
            target = self._origin_form(target)
        exchange = Exchange(
            self._connection,
            _METHODS.get(method) or method.decode("ascii"),
            target,
            headers,
            self._num_headers,
            parser.should_keep_alive(),
            version == "1.0",
        )
        if b"transfer-encoding" in headers:
            exchange.can_discard = False
            if headers[b"transfer-encoding"].strip().lower() != b"chunked":
                # The parser knows no other coding, and where this body ends only the coding tells.
                self.fail(
                    HttpError(
                        501, INVALID, "unknown_transfer_encoding", "the only transfer-encoding is chunked"
                    )
                )
                raise _Refused
        declared = headers.get(b"content-length")
        # What is no number, or too large for one, the parser has refused.
        if declared is not None and int(declared) > limits.max_body:
            exchange.can_discard = int(declared) <= limits.max_body * DISCARDED_BODIES
            exchange.refusal = self._body_too_large()
        if b"expect" in headers:
            # A client that is refused may send the body, or not: RFC 9110 section 10.1.1.
            exchange.can_discard = False
        self.reading = exchange
        self.queue.append(exchange)
        self._num_body = self._num_framing = self._num_since_body = 0

    def _origin_form(self, target: bytes) -> bytes:
        """Return the path of a target that names its host, which takes the place of Host (RFC 9112 section 3.2.2)."""
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            return target
        self._headers[b"host"], path = absolute.groups()
        return path if path.startswith(b"/") else b"/" + path

    def on_body(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self._num_body += len(chunk)
        exchange = self.reading
        if exchange is None or exchange.is_over or exchange.refusal is not None:
            return
        exchange.add_body(chunk)
        if exchange.num_body_bytes > self._limits.max_body:
            exchange.drop_body()
            exchange.can_discard = False
            exchange.refusal = self._body_too_large()

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        exchange = self.reading
        if exchange is None or self._parser.should_upgrade():
            return
        exchange.is_complete = True
        self.reading = None
        self._is_in_head = True
        self.head_bytes = 0
        # Told to whoever begins the next message: see `on_url`.
        self._num_headers = self._num_headers or 1

    def _is_head_oversized(self) -> bool:
        fields = sum(len(name) + len(value) + len(b": \r\n") for name, value in self._headers.items())
        return len(self._target) + fields > self._limits.max_header_bytes

    def _head_too_large(self) -> HttpError:
        limit = self._limits.max_header_bytes
        return HttpError(431, INVALID, "headers_too_large", f"headers are larger than {limit} bytes")

    def _body_too_large(self) -> HttpError:
        limit = self._limits.max_body
        return HttpError(413, INVALID, "body_too_large", f"the request body is larger than {limit} bytes")


def _no_http(message: str) -> HttpError:
    return HttpError(400, INVALID, "invalid_http", message)


def _unknown_method(data: bytes) -> HttpError:
    """Return what is said of `data`, of which the parser knows no method: maybe it is no HTTP at all."""
    line = _REQUEST_LINE.match(data)
    if line is None or line[1] in _METHODS:
        return _no_http("this is not an HTTP/1.1 request")
    method = line[1].decode("ascii")
    return HttpError(
        501, INVALID, "unknown_method", f"the method {method} is not known; methods are upper case"
    )


class _Refused(Exception):
    """Ends the parsing of a request that has been refused."""
