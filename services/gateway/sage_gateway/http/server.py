"""The HTTP server inside the actor's event loop: its socket, its connections, and the one look at all their limits."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable
from typing import Final

from sage_core import ConfigurationError
from sage_gateway.http.application import Application
from sage_gateway.http.connection import Connection
from sage_gateway.http.exchange import Exchange
from sage_gateway.http.head import date_line
from sage_gateway.settings import GatewaySection
from sage_telemetry import get_logger

__all__ = ["HttpServer", "listen"]

log = get_logger()

_BACKLOG: Final = 2048
_LONGEST_LOOK: Final = 0.25
_SHORTEST_LOOK: Final = 0.005


def listen(settings: GatewaySection, *, is_only_bound: bool = False) -> socket.socket:
    """Return the listening socket, or one that holds the address for others that share it.

    Raises ConfigurationError naming the address that cannot be taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.share_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections inherit both. The kernel drops a peer that has taken nothing for this long, also one that we
        # have already finished with and whose buffer alone is left.
        limit_ms = math.ceil(settings.stall_timeout * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
        if not is_only_bound:
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
    """Serves one application on one socket, from `start` to `stop`.

    Every limit of time is a number on its connection, and one timer looks at all of them: a timer per request, and
    a task per request that waited for it, were a sixth of the gateway's time. Limits are kept to within a quarter.
    """

    def __init__(self, application: Application, settings: GatewaySection) -> None:
        self.application = application
        self.settings = settings
        self.connections: set[Connection] = set()
        self.is_draining = False
        self.date_line = b""
        self._listener: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()
        self._unflushed: list[Exchange] = []
        self.now: Callable[[], float] = time.monotonic
        """The event loop's time, in seconds, once `start_looking` was called."""
        shortest = min(
            settings.header_timeout,
            settings.body_timeout,
            settings.idle_timeout,
            settings.keep_alive_interval,
            settings.stall_timeout,
        )
        self._interval = min(max(shortest / 4, _SHORTEST_LOOK), _LONGEST_LOOK)

    @property
    def port(self) -> int:
        """The port that is listened on, also where the settings left the choice to the system."""
        assert self._listener is not None
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen and serve. Raises ConfigurationError where the port is taken."""
        self._listener = listen(self.settings)
        self.start_looking()
        # Named again, as the loop listens once more, by default with room for 100: of 256 clients that came at once,
        # some tried again after a second.
        self._server = await asyncio.get_running_loop().create_server(
            self.connect, sock=self._listener, backlog=_BACKLOG
        )

    def connect(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    def flush_soon(self, exchange: Exchange) -> None:
        """Flush `exchange` at the end of this turn of the event loop. For the exchange."""
        if not self._unflushed:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        self._unflushed.append(exchange)

    def _flush(self) -> None:
        exchanges, self._unflushed = self._unflushed, []
        for exchange in exchanges:
            try:
                exchange.flush()
            except Exception as error:  # one connection's trouble must not silence all other streams
                log.error("flush_failed", exc_info=error)

    def lost(self, connection: Connection) -> None:
        """Forget `connection`. For the connection."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    async def drain(self) -> None:
        """Stop listening, close idle connections, and return when the last request has been answered."""
        self._stop_listening()
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()
        await self._until_empty()

    async def stop(self, limit: float) -> None:
        """Stop now: what still runs is told so, for at most `limit` seconds. Idempotent."""
        self._stop_listening()
        self.is_draining = True
        for connection in list(self.connections):
            connection.stop()
        try:
            async with asyncio.timeout(limit):
                await self._until_empty()
        except TimeoutError:
            for connection in list(self.connections):
                connection.transport.abort()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    async def _until_empty(self) -> None:
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def start_looking(self) -> None:
        """Keep the date, and call every connection whose deadline has passed, until `stop`."""
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._look()

    def _look(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(self._interval, self._look)
        self.date_line = date_line(time.time())
        now = self._loop.time()
        for connection in [each for each in self.connections if each.deadline <= now]:
            try:
                connection.look(now)
            except Exception as error:  # as above; a connection that cannot be looked at is not kept
                log.error("connection_failed", exc_info=error)
                connection.transport.abort()
