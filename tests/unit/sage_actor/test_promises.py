"""The ten promises of the actor runtime, one test each."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from sage_actor import Actor, current_call, handles
from sage_core import (
    ActorRestarted,
    DeadlineExceeded,
    FakeClock,
    Internal,
    NotFound,
    Overloaded,
    Unavailable,
)
from sage_wire import CallHeaders, subjects
from sage_wire.headers import ERROR
from sage_wire.messages import Message


class Add(Message):
    number: int


class Added(Message):
    total: int


class Hold(Message):
    name: str = ""


class Held(Message):
    name: str


class Crash(Message):
    pass


class Counter(Actor):
    """Adds; holds calls until released; crashes on demand."""

    kind = "counter"

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.total = 0
        self.seen: list[str] = []
        self.num_running = 0
        self.max_running = 0
        self.num_cancelled = 0
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    @handles
    async def add(self, request: Add) -> Added:
        if request.number < 0:
            raise NotFound("no negative numbers here", param="number")
        self.total += request.number
        return Added(total=self.total)

    @handles
    async def hold(self, request: Hold) -> Held:
        self.seen.append(request.name)
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            self.cancelled.set()
            raise
        finally:
            self.num_running -= 1
        return Held(name=request.name)

    @handles
    async def crash(self, _request: Crash) -> Added:
        raise KeyError("a bug")


async def until(condition: Any) -> None:
    """Let the loop turn until `condition()`; fails after two seconds."""
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - the conditions are states, not events
            await asyncio.sleep(0)


async def test_a_typed_handler_replies_typed(runtime_of: Any, peer: Any) -> None:
    await runtime_of(Counter)
    assert await peer.ask("add", Add(number=2), Added) == Added(total=2)
    assert await peer.ask("add", Add(number=3), Added) == Added(total=5)


async def test_a_malformed_body_gets_a_typed_error_and_the_handler_is_not_run(
    runtime_of: Any, peer: Any
) -> None:
    runtime = await runtime_of(Counter)
    reply = await peer.bus.request(
        subjects.actor("a-1", "hold"), msgpack.packb({"name": 7}), timeout=1.0, headers=CallHeaders().encode()
    )
    assert reply.headers[ERROR] == "1"
    error = msgpack.unpackb(reply.payload)
    assert error["code"] == "bad_request"
    assert "malformed Hold" in error["message"]
    assert "$.name" in error["message"]
    assert runtime.actor.seen == []
    assert runtime.epoch == runtime.actor.context.epoch


async def test_a_full_mailbox_refuses_at_the_door_with_overloaded(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Counter, max_mailbox=2, max_slots=1)
    held = [asyncio.create_task(peer.ask("hold", Hold(name=str(number)), Held)) for number in range(3)]
    await until(lambda: runtime.num_in_flight == 3)
    with pytest.raises(Overloaded) as refused:
        await peer.ask("hold", Hold(name="one too many"), Held)
    assert refused.value.retry_after is not None
    assert refused.value.retryable
    runtime.actor.release.set()
    assert [reply.name for reply in await asyncio.gather(*held)] == ["0", "1", "2"]
    assert "one too many" not in runtime.actor.seen


async def test_slots_bound_how_many_handlers_run_at_once(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Counter, max_slots=3)
    held = [asyncio.create_task(peer.ask("hold", Hold(name=str(number)), Held)) for number in range(8)]
    await until(lambda: runtime.num_in_flight == 8 and runtime.actor.num_running == 3)
    runtime.actor.release.set()
    await asyncio.gather(*held)
    assert runtime.actor.max_running == 3
    assert runtime.actor.seen == [str(number) for number in range(8)]


async def test_work_whose_budget_is_spent_is_dropped_unrun(runtime_of: Any, peer: Any) -> None:
    clock = FakeClock()
    runtime = await runtime_of(Counter, max_slots=1, clock=clock)
    first = asyncio.create_task(peer.ask("hold", Hold(name="first"), Held))
    await until(lambda: runtime.actor.seen == ["first"])
    late = asyncio.create_task(peer.ask("hold", Hold(name="late"), Held, budget=1.5))
    await until(lambda: runtime.num_in_flight == 2)
    clock.advance(1.6)
    runtime.actor.release.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    assert runtime.actor.seen == ["first"]


async def test_a_budget_cuts_a_running_handler(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Counter)
    # The caller waits longer than the budget it sends, so that the answer seen is the callee's.
    reply = await peer.bus.request(
        subjects.actor("a-1", "hold"),
        msgpack.packb({"name": "slow"}),
        timeout=2.0,
        headers=CallHeaders(budget_ms=20).encode(),
    )
    assert msgpack.unpackb(reply.payload)["code"] == "deadline_exceeded"
    assert runtime.actor.num_cancelled == 1
    assert (await peer.ask("add", Add(number=1), Added)).total == 1


async def test_the_callers_cancel_reaches_the_callees_task(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Counter, max_slots=1)
    running = asyncio.create_task(peer.ask("hold", Hold(name="running"), Held))
    await until(lambda: runtime.actor.seen == ["running"])
    waiting = asyncio.create_task(peer.ask("hold", Hold(name="waiting"), Held))
    await until(lambda: runtime.num_in_flight == 2)
    waiting.cancel()
    await until(lambda: runtime.num_in_flight == 1)
    running.cancel()
    async with asyncio.timeout(1):
        await runtime.actor.cancelled.wait()
    await until(lambda: runtime.num_in_flight == 0)
    assert runtime.actor.seen == ["running"]
    assert runtime.actor.num_cancelled == 1


async def test_an_unexpected_exception_restarts_the_actor_with_fresh_state(
    runtime_of: Any, peer: Any
) -> None:
    runtime = await runtime_of(Counter)
    await peer.ask("add", Add(number=41), Added)
    first_epoch = runtime.epoch
    bystander = asyncio.create_task(peer.ask("hold", Hold(), Held))
    await until(lambda: runtime.actor.num_running == 1)
    with pytest.raises(NotFound) as refused:
        await peer.ask("add", Add(number=-1), Added)
    assert refused.value.param == "number"
    assert runtime.epoch == first_epoch, "a SageError is a reply, not a crash"
    with pytest.raises(Internal) as crashed:
        await peer.ask("crash", Crash(), Added)
    assert "a bug" not in str(crashed.value), "what the exception says stays in the log"
    with pytest.raises(ActorRestarted):
        await bystander
    assert await peer.ask("add", Add(number=1), Added) == Added(total=1)
    assert runtime.epoch != first_epoch


async def test_four_crashes_in_a_row_end_the_process_but_a_success_between_forgives(
    runtime_of: Any, peer: Any
) -> None:
    runtime = await runtime_of(Counter)

    async def crash() -> None:
        with pytest.raises((Internal, ActorRestarted)):
            await peer.ask("crash", Crash(), Added)

    for _ in range(3):
        await crash()
    await peer.ask("add", Add(number=1), Added)
    for _ in range(3):
        await crash()
    await until(lambda: runtime.state == "ready")
    await crash()
    async with asyncio.timeout(2):
        assert await runtime.run_until_stopped() == 1
    assert runtime.state == "stopped"


async def test_a_drain_finishes_what_runs_within_its_limit_and_then_cancels(
    runtime_of: Any, peer: Any
) -> None:
    patient = await runtime_of(Counter)
    finishing = asyncio.create_task(peer.ask("hold", Hold(name="finishing"), Held))
    await until(lambda: patient.actor.num_running == 1)
    actor = patient.actor
    stopping = asyncio.create_task(patient.stop(drain=True))
    await until(lambda: patient.state == "draining")
    with pytest.raises(Unavailable):
        await peer.ask("add", Add(number=1), Added)
    actor.release.set()
    assert (await finishing).name == "finishing"
    await stopping
    assert await patient.run_until_stopped() == 0

    hasty = await runtime_of(Counter, drain_timeout="30ms")
    stuck = asyncio.create_task(peer.ask("hold", Hold(name="stuck"), Held))
    await until(lambda: hasty.actor.num_running == 1)
    actor = hasty.actor
    await hasty.stop(drain=True)
    assert actor.num_cancelled == 1
    with pytest.raises(Unavailable):
        await stuck
    assert await hasty.run_until_stopped() == 0


async def test_current_call_is_known_in_a_handler_and_nowhere_else(runtime_of: Any, peer: Any) -> None:
    seen = []

    class Curious(Actor):
        @handles
        async def add(self, request: Add) -> Added:
            seen.append(current_call())
            return Added(total=0)

    await runtime_of(Curious)
    await peer.ask("add", Add(number=1), Added, budget=1.0)
    assert seen[0].subject == subjects.actor("a-1", "add")
    assert seen[0].call_id == "peer-1"
    assert 0.5 < seen[0].budget.remaining <= 1.0
    with pytest.raises(RuntimeError):
        current_call()
