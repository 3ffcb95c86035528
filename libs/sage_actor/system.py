"""The handlers every actor has. They live outside the actor, so they answer while it starts, drains or restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sage_actor.handlers import handles
from sage_telemetry import Telemetry
from sage_wire import subjects
from sage_wire.messages import Discover, Drain, Draining, FindSpans, FoundSpans, Ping, Pong

__all__ = ["SystemHandlers"]


@dataclass(frozen=True, slots=True)
class SystemHandlers:
    """Ping and Drain on the actor's own subject, Discover and FindSpans on everybody's."""

    actor_id: str
    telemetry: Telemetry | None
    pong: Callable[[], Pong]
    announce: Callable[[], None]
    drain: Callable[[float], int]

    @handles
    async def ping(self, _request: Ping) -> Pong:
        """Answer from the event loop, so a stuck loop does not answer."""
        return self.pong()

    @handles
    async def drain_actor(self, request: Drain) -> Draining:
        """Begin to drain; the process ends when it is done."""
        return Draining(num_in_flight=self.drain(request.timeout_ms / 1000))

    @handles(subject=lambda _: subjects.every("discover"))
    async def discover(self, _request: Discover) -> None:
        """Announce."""
        self.announce()

    @handles(subject=lambda _: subjects.every("find_spans"))
    async def find_spans(self, request: FindSpans) -> FoundSpans:
        """Return this process's recent spans of a trace, or those that name a request."""
        if self.telemetry is None:
            return FoundSpans(actor_id=self.actor_id, spans=[])
        recent = self.telemetry.recent
        spans = (
            recent.find_request(request.request_id) if request.request_id else recent.find(request.trace_id)
        )
        return FoundSpans(actor_id=self.actor_id, spans=spans)
