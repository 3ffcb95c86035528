"""uvicorn inside the actor's own event loop; what it leaves open is closed: header limits and slow starts."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sage_core import ConfigurationError
from sage_gateway.errors import HttpError, error_body
from sage_gateway.exchange import ABORT_EXTENSION, Receive, Scope, Send
from sage_gateway.settings import GatewaySection

__all__ = ["HttpServer", "listen"]

AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
_BACKLOG: Final = 2048
_INVALID: Final = "invalid_request_error"
_LINGER_SECONDS: Final = 1.0
"""How long the rest of an oversized head is read and thrown away. A client reads only after it has written; closing
on what it sent unread would reset the connection, and the answer with it."""


def listen(settings: GatewaySection) -> socket.socket:
    """Return the listening socket. Raises ConfigurationError naming the address that cannot be taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: the kernel drops a peer that has taken nothing for this long, also one that we
        # have already finished with and whose buffer alone is left.
        limit_ms = math.ceil(settings.stall_timeout * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _cannot_listen(settings, error) from None
    return listener


def _cannot_listen(settings: GatewaySection, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"gateway.host = {settings.host!r}, gateway.port = {settings.port}: "
        f"cannot listen there: {error.strerror or error}",
        param="gateway.port",
    )


class HttpServer:
    """Serves one ASGI application on one socket, from `start` to `stop`."""

    def __init__(self, app: AsgiApp, settings: GatewaySection) -> None:
        self._settings = settings
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            app,
            http=_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(settings.idle_timeout),
            backlog=_BACKLOG,
        )
        self._server = _Server(config)

    @property
    def port(self) -> int:
        """The port that is listened on, also where the settings left the choice to the system."""
        assert self._listener is not None
        port: int = self._listener.getsockname()[1]
        return port

    def start(self) -> asyncio.Task[None]:
        """Listen and serve; returns the task that serves. Raises ConfigurationError where the port is taken."""
        self._listener = listen(self._settings)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http server")
        return self._task

    async def drain(self) -> None:
        """Stop listening, close idle connections, and return when the last request has been answered."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self, limit: float) -> None:
        """Stop now: what still runs is cancelled and told so, for at most `limit` seconds. Idempotent."""
        self._server.should_exit = True
        self._server.force_exit = True
        requests = list(self._server.server_state.tasks)
        for request in requests:
            request.cancel()
        if requests:
            await asyncio.wait(requests, timeout=limit)
        for connection in list(self._server.server_state.connections):
            connection.transport.close()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait([task], timeout=limit)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals belong to the process's runtime."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _protocol(settings: GatewaySection) -> type[asyncio.Protocol]:
    """Return a connection class bound to `settings`; uvicorn makes one object per connection."""

    class BoundProtocol(_EdgeProtocol):
        edge_settings = settings

    return BoundProtocol


class _HeadTooLarge(Exception):
    """Ends the parsing of a request that has been refused."""


class _EdgeProtocol(HttpToolsProtocol):
    """A connection with bounded headers: in bytes, and in the time they may take to arrive."""

    edge_settings: GatewaySection

    _head_bytes = 0
    """Bytes received since the last message ended: the bound of a head that does not end."""
    _parsed_bytes = 0
    """Bytes of this message's own request line and headers: the bound of a head that came with more."""
    _is_in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _is_head_repeated = False
    _linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.edge_settings.max_connections:
            self._refuse(
                HttpError(503, "server_error", "too_many_connections", "the gateway has too many connections")
            )
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is not None:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(HttpError(400, _INVALID, "invalid_http", "this is not an HTTP/1.1 request"))
        if not self._is_in_head or self._head_bytes == 0 or self._is_over():
            return
        if self._head_bytes > self.edge_settings.max_header_bytes:
            self._refuse_head()
        elif self._head_timer is None:
            self._start_head_timer()

    def _feed(self, data: bytes) -> None:
        """Parse `data`. An offered upgrade is declined by going on in HTTP/1.1, as RFC 9110 section 7.8 allows.

        The parser takes an upgrade for granted and ends the message at its head: the body of a POST that offers
        h2c, as Java's HttpClient and `curl --http2` send it, would be lost. A fresh parser is told the framing again.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self._is_head_repeated = True
                framing = [
                    b"%b: %b\r\n" % header
                    for header in self.headers
                    if header[0] in (b"content-length", b"transfer-encoding")
                ]
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing))
                self._is_head_repeated = False
                continue
            return

    def on_message_begin(self) -> None:
        if self._is_head_repeated:
            return
        super().on_message_begin()
        self._parsed_bytes = 0
        # An ASGI server may add extensions of its own; uvicorn's types know only the standard ones.
        extensions: dict[str, Any] = {ABORT_EXTENSION: self.transport.abort}
        self.scope["extensions"] = extensions

    def on_url(self, url: bytes) -> None:
        if not self._is_head_repeated:
            self._parsed_bytes += len(url)
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_head_repeated:
            self._parsed_bytes += len(name) + len(value) + len(b": \r\n")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_head_repeated:
            return
        self._is_in_head = False
        self._stop_head_timer()
        if self._parsed_bytes > self.edge_settings.max_header_bytes:
            self._refuse_head()
            raise _HeadTooLarge
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._is_in_head = True
        self._head_bytes = 0
        # A body that was refused unread goes on arriving after its answer, which stopped the idle timer.
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.edge_settings.header_timeout, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        timer, self._head_timer = self._head_timer, None
        if timer is not None:
            timer.cancel()

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._head_bytes == 0:
            self.transport.close()
            return
        limit = self.edge_settings.header_timeout
        self._refuse(HttpError(408, _INVALID, "header_timeout", f"headers did not arrive within {limit:g} s"))

    def _refuse_head(self) -> None:
        limit = self.edge_settings.max_header_bytes
        error = HttpError(431, _INVALID, "headers_too_large", f"headers are larger than {limit} bytes")
        self._refuse(error, is_lingering=True)

    def _is_over(self) -> bool:
        return self.transport.is_closing() or self._linger_timer is not None

    def _refuse(self, error: HttpError, *, is_lingering: bool = False) -> None:
        """Answer without the application and close. Nothing is said into an answer that has begun."""
        if self._is_over():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = error_body(error)
            self.transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
                % (STATUS_LINE[error.status], len(body), body)
            )
            if is_lingering:
                self._stop_head_timer()
                self.transport.write_eof()
                self._linger_timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)
                return
        self.transport.close()
