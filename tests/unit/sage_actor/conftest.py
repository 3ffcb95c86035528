"""A broker in memory, and runtimes on it that are stopped at the end of each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sage_actor import Actor, ActorContext, ActorRuntime
from sage_actor.calls import Caller
from sage_bus import Bus, MemoryBroker
from sage_core import Clock, SystemClock
from sage_core.settings import ActorSettings
from sage_wire import subjects
from sage_wire.messages import Message

Start = Callable[..., Awaitable[ActorRuntime]]


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def runtime_of(broker: MemoryBroker) -> AsyncIterator[Start]:
    """Start `factory` as actor `a-1`; keyword arguments are actor settings."""
    started: list[ActorRuntime] = []

    async def start(
        factory: Callable[[ActorContext], Actor],
        *,
        actor_id: str = "a-1",
        clock: Clock | None = None,
        **settings: Any,
    ) -> ActorRuntime:
        runtime = ActorRuntime(
            factory,
            actor_id=actor_id,
            bus=broker.connect(actor_id),
            control=broker.connect(f"{actor_id}-control"),
            settings=ActorSettings(**settings),
            clock=clock,
        )
        started.append(runtime)
        await runtime.start()
        return runtime

    yield start
    for runtime in started:
        await runtime.stop(drain=False)


class Peer:
    """Somebody else on the bus, who calls actor `a-1` by verb."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._caller = Caller("peer", SystemClock())

    async def ask(self, verb: str, message: Message, reply_type: type[Any], budget: float = 2.0) -> Any:
        return await self._caller.ask(self.bus, subjects.actor("a-1", verb), message, reply_type, budget)

    def tell(self, verb: str, message: Message, budget: float | None = None) -> None:
        self._caller.tell(self.bus, subjects.actor("a-1", verb), message, budget)


@pytest.fixture
def peer(broker: MemoryBroker) -> Peer:
    return Peer(broker.connect("peer"))
