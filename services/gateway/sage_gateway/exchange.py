"""One HTTP request and its response over raw ASGI: bounded reading, framed answering. Knows no routes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from sage_core import BadRequest, Clock
from sage_gateway.errors import HttpError, HttpRefused, error_body
from sage_gateway.settings import GatewaySection

if TYPE_CHECKING:
    from sage_gateway.event_stream import EventStream

__all__ = ["ABORT_EXTENSION", "ClientGone", "Exchange", "Message", "Receive", "Scope", "Send"]

# ASGI 3 defines its interface as dictionaries: https://asgi.readthedocs.io/en/latest/specs/www.html
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

ABORT_EXTENSION: Final = "sage.abort"
"""ASGI extension of our server: a function that drops the connection without flushing it."""

_CLIENT_ID: Final = re.compile(rb"[\x21-\x7e]{1,512}")
_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_JSON: Final = (b"content-type", b"application/json")
_CLOSE: Final = (b"connection", b"close")
_DISCARDED_BODIES: Final = 16
"""An oversized body is read to its end and thrown away up to this many times the limit, so that the client, which
reads only after it has written, gets to see the 413; beyond it the connection is closed."""


class ClientGone(Exception):
    """The client left, or was cut off; nobody reads an answer."""


class Exchange:
    """A request with its answer. `request_id` is ours; `shown_id` is the client's own where it sent one."""

    __slots__ = (
        "_receive",
        "_send",
        "_settings",
        "_sock_abort",
        "clock",
        "event_stream",
        "headers",
        "is_gone",
        "method",
        "num_headers",
        "path",
        "request_id",
        "response_headers",
        "shown_id",
        "started_at",
        "status",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, settings: GatewaySection, clock: Clock
    ) -> None:
        self._receive = receive
        self._send = send
        self._settings = settings
        extensions = scope.get("extensions") or {}
        self._sock_abort: Callable[[], None] | None = extensions.get(ABORT_EXTENSION)
        self.clock = clock
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.num_headers = len(scope["headers"])
        self.request_id = ""
        self.shown_id = ""
        self.started_at = clock.now()
        self.response_headers: Headers = []
        self.status: int | None = None
        self.is_gone = False
        self.event_stream: EventStream | None = None

    def identify(self, request_id: str) -> None:
        """Give the request its id, and accept the client's for display. Raises BadRequest for one that is no id."""
        self.request_id = self.shown_id = request_id
        given = self.headers.get(b"x-client-request-id")
        if given is None:
            return
        if _CLIENT_ID.fullmatch(given) is None:
            raise BadRequest(
                "'x-client-request-id': expected 1 to 512 printable ASCII characters",
                param="x-client-request-id",
            )
        self.shown_id = given.decode("ascii")

    async def read_body(self) -> bytes:
        """Return the whole body.

        Raises HttpRefused 413 for one that is too large, before reading where its length is declared; 408 for a
        client that is too slow; ClientGone where it left.
        """
        limit = self._settings.max_body
        declared = self.headers.get(b"content-length")
        if declared is not None:
            if _CONTENT_LENGTH.fullmatch(declared) is None:
                raise HttpRefused(
                    400, "invalid_request_error", "invalid_header", "content-length is not a number"
                )
            if int(declared) > limit:
                raise _too_large(limit, is_closed=int(declared) > limit * _DISCARDED_BODIES)
        chunks: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        self.is_gone = True
                        raise ClientGone
                    chunk: bytes = message.get("body", b"")
                    num_bytes += len(chunk)
                    if num_bytes > limit:
                        raise _too_large(limit, is_closed=True)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise HttpRefused(
                408,
                "invalid_request_error",
                "body_timeout",
                f"the body did not arrive within {self._settings.body_timeout:g} s",
                headers=(_CLOSE,),
            ) from None

    async def wait_gone(self) -> None:
        """Return once the client has disconnected. Only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def abort(self) -> None:
        """Drop the connection without flushing what is buffered for it, where the server can."""
        self.is_gone = True
        if self._sock_abort is not None:
            self._sock_abort()

    async def respond(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """Send a complete JSON answer; `headers` are added, and replace the content type where they name one."""
        head = [(b"content-length", str(len(body)).encode()), *(headers or ())]
        if not any(name == b"content-type" for name, _ in head):
            head.append(_JSON)
        await self.start(status, head)
        await self.send_body(body, is_last=True)

    async def refuse(self, error: HttpError) -> None:
        """Send an error answer."""
        await self.respond(error.status, error_body(error), error.head())

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and headers. Standard headers are added here."""
        self.status = status
        elapsed_ms = (self.clock.now() - self.started_at) * 1000
        head = [
            *headers,
            (b"x-request-id", self.shown_id.encode("ascii")),
            (b"x-sage-request-id", self.request_id.encode("ascii")),
            (b"openai-processing-ms", str(max(0, round(elapsed_ms))).encode()),
            *self.response_headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def send_body(self, data: bytes, *, is_last: bool) -> None:
        """Send a part of the body; waits while the connection's buffer is full."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})


def _too_large(limit: int, *, is_closed: bool) -> HttpRefused:
    return HttpRefused(
        413,
        "invalid_request_error",
        "body_too_large",
        f"the request body is larger than {limit} bytes",
        headers=(_CLOSE,) if is_closed else (),
    )
