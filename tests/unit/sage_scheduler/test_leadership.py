"""Leases of pools: what ends one of them at an awkward moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import structlog

from sage_actor import ActorContext
from sage_bus import BusEvent, MemoryBus
from sage_core import FakeClock
from sage_core.settings import ActorSettings
from sage_scheduler.leadership import Leadership

TTL = 60.0


@pytest.mark.parametrize("num_turns", range(8))
async def test_a_lease_that_ends_while_others_are_renewed_costs_no_more_than_its_pool(num_turns: int) -> None:
    clock, bus = FakeClock(), _Reconnecting()
    tasks: list[asyncio.Task[Any]] = []
    gained: asyncio.Queue[str] = asyncio.Queue()
    lost: list[str] = []

    def spawn(coroutine: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        tasks.append(task)
        return task

    async def on_gained(pool: str, _: int) -> None:
        gained.put_nowait(pool)

    context = ActorContext(
        actor_id="s1", kind="scheduler", epoch="e1", settings=ActorSettings(), clock=clock, bus=bus, control=bus,
        telemetry=None, log=structlog.get_logger(), spawn=spawn, listen=_unused, announce=_unused,
    )  # fmt: skip
    leadership = Leadership(context, ttl=TTL, on_gained=on_gained, on_lost=lost.append)
    leadership.start()
    leadership.serve({"a": frozenset(), "b": frozenset()})
    assert {await gained.get(), await gained.get()} == {"a", "b"}
    (renewing,) = [task for task in tasks if task.get_name() == "renew leases"]

    # The renewals are somewhere on their way when an event sweeps what has ended.
    bus.reconnect()
    for _ in range(num_turns):
        await asyncio.sleep(0)
    clock.advance(TTL + 1.0)
    leadership.sweep(clock.now())
    for _ in range(8):
        await asyncio.sleep(0)

    assert not renewing.done(), renewing
    await leadership.release()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Reconnecting(MemoryBus):
    """Tells its listeners of a reconnection on demand."""

    def __init__(self) -> None:
        super().__init__()
        self._told: list[Callable[[BusEvent, str], None]] = []

    def on_event(self, callback: Callable[[BusEvent, str], None]) -> None:
        self._told.append(callback)

    def reconnect(self) -> None:
        for callback in self._told:
            callback(BusEvent.RECONNECTED, "")


def _unused(*_: object, **__: object) -> Any:
    raise AssertionError("leadership neither listens nor announces")
