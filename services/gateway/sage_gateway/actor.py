"""The gateway's actor: wires roster, port, application and server together, and ends them in the right order."""

from __future__ import annotations

import asyncio
import signal
from typing import ClassVar

from sage_actor import Actor, ActorContext, ChangeKind, Presence, Roster, RosterChange
from sage_client import RequestPort
from sage_core import ConfigurationError
from sage_gateway.access import Gate
from sage_gateway.app import App
from sage_gateway.cancelling import Cancelling
from sage_gateway.catalog import Catalog
from sage_gateway.edge import Edge
from sage_gateway.http import HttpServer
from sage_gateway.in_flight import InFlight
from sage_gateway.responses import ResponseRoutes
from sage_gateway.settings import GatewaySettings
from sage_gateway.table import route_table
from sage_wire.roles import Role

__all__ = ["GatewayActor"]

_STOP_SECONDS = 2.0


class GatewayActor(Actor):
    """Serves HTTP between `on_start` and `on_stop`. What its death costs: the connections that are open."""

    kind: ClassVar[str] = "gateway"

    def __init__(self, context: ActorContext, settings: GatewaySettings) -> None:
        super().__init__(context)
        section = settings.gateway
        self._roster = Roster(context.control, context.clock)
        self._port = RequestPort(
            context.bus,
            consumer_id=context.actor_id,
            role=Role.GATEWAY,
            clock=context.clock,
            roster=self._roster,
        )
        self._catalog = Catalog(section.remember_models)
        self._in_flight = InFlight(section.max_in_flight)
        self._max_in_flight = section.max_in_flight
        self._gate = Gate(section, clock=context.clock, bus=context.control)
        edge = Edge(
            settings=section,
            clock=context.clock,
            port=self._port,
            catalog=self._catalog,
            in_flight=self._in_flight,
            gate=self._gate,
            spawn=context.spawn,
            sample_ratio=settings.telemetry.sample_ratio,
        )
        self._responses = ResponseRoutes(section, context.bus)
        self._cancelling = Cancelling(context.control, self._in_flight)
        routes = route_table(edge, self._responses, self._cancelling)
        self._server = HttpServer(App(edge, routes), section)
        self._host = section.host

    @property
    def port(self) -> int:
        """The TCP port that is served."""
        return self._server.port

    async def on_start(self) -> None:
        """Listen for workers, then for clients. Raises ConfigurationError where the port is taken."""
        self._roster.subscribe(self._on_change)
        await self._port.start()
        await self._roster.start()
        try:
            await self._responses.start()
            await self._cancelling.start()
            await self._server.start()
        except ConfigurationError:
            await self._let_go()
            raise
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._gate.reload)
        self.context.log.info("gateway_listening", host=self._host, port=self._server.port)

    async def on_drain(self) -> None:
        """Take no new requests; return when the last one is answered."""
        self._in_flight.is_draining = True
        await self._server.drain()

    async def on_stop(self) -> None:
        """Tell every client that is still here, then let go of the bus."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        await self._server.stop(_STOP_SECONDS)
        await self._gate.close()
        await self._let_go()

    async def _let_go(self) -> None:
        await self._responses.close()
        await self._cancelling.close()
        await self._port.close()
        await self._roster.stop()

    def presence(self) -> Presence:
        """Return how many requests are open."""
        return Presence(max_in_flight=self._max_in_flight, num_in_flight=len(self._in_flight))

    def _on_change(self, change: RosterChange) -> None:
        announcement, now = change.announcement, self.context.clock.now()
        if change.kind is ChangeKind.DOWN:
            self._catalog.remove(announcement.actor_id, now)
        else:
            self._catalog.update(announcement.actor_id, announcement.kind, announcement.models, now)
