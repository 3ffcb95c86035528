"""Starts, crashes, drains and announcements of one actor, beyond the ten promises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_actor import Actor, ActorRuntime, ChangeKind, Presence, Roster, handles
from sage_actor.runtime import MAX_CRASHES
from sage_core import Cancelled, ConfigurationError, DeadlineExceeded, Internal, LimitExceeded
from sage_core.settings import ActorSettings
from sage_wire import decode, subjects
from sage_wire.headers import CANCEL
from sage_wire.messages import (
    Announcement,
    Drain,
    Draining,
    FindSpans,
    FoundSpans,
    Message,
    Ping,
    Pong,
    ServedModel,
)


class Work(Message):
    name: str = ""


class Done(Message):
    name: str = ""


class Note(Message):
    number: int


class Worker(Actor):
    """Notes what happens to it; one gate holds its handler."""

    kind = "test"
    lives: list[Worker]

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.events: list[str] = []
        self.notes: list[int] = []
        self.gate = asyncio.Event()

    async def on_start(self) -> None:
        self.events.append("on_start")

    async def on_stop(self) -> None:
        self.events.append("on_stop")

    async def on_drain(self) -> None:
        self.events.append("on_drain")

    def presence(self) -> Presence:
        return Presence(max_in_flight=4, num_in_flight=len(self.notes))

    @handles
    async def work(self, request: Work) -> Done:
        self.events.append(f"work {request.name}")
        if request.name == "crash":
            raise ZeroDivisionError
        if request.name == "hold":
            await self.gate.wait()
        self.events.append(f"done {request.name}")
        return Done(name=request.name)

    @handles(max_slots=1)
    async def note(self, request: Note) -> None:
        await asyncio.sleep(0)
        self.notes.append(request.number)


async def until(condition: Any) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - the conditions are states, not events
            await asyncio.sleep(0)


def unstarted(broker: Any, factory: Any, **settings: Any) -> ActorRuntime:
    return ActorRuntime(
        factory,
        actor_id="a-1",
        bus=broker.connect("a-1"),
        control=broker.connect("a-1-control"),
        settings=ActorSettings(**settings),
    )


async def announcements(broker: Any) -> list[Announcement]:
    heard: list[Announcement] = []
    bus = broker.connect("listener")
    await bus.subscribe(
        subjects.ALL_ANNOUNCEMENTS,
        lambda message: heard.append(decode(Announcement, message.payload)),
    )
    return heard


async def test_hooks_run_in_order_and_on_stop_after_the_last_handler(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Worker)
    actor = runtime.actor
    call = asyncio.create_task(peer.ask("work", Work(name="hold"), Done))
    await until(lambda: "work hold" in actor.events)
    stopping = asyncio.create_task(runtime.stop())
    await until(lambda: "on_drain" in actor.events)
    actor.gate.set()
    await asyncio.gather(call, stopping)
    assert actor.events == ["on_start", "work hold", "on_drain", "done hold", "on_stop"]


async def test_calls_that_waited_during_a_crash_are_served_by_the_next_life(
    runtime_of: Any, peer: Any
) -> None:
    lives: list[Worker] = []

    def build(context: Any) -> Worker:
        lives.append(Worker(context))
        return lives[-1]

    await runtime_of(build, max_slots=1)
    crash = asyncio.create_task(peer.ask("work", Work(name="crash"), Done))
    after = asyncio.create_task(peer.ask("work", Work(name="after"), Done))
    with pytest.raises(Internal):
        await crash
    assert (await after).name == "after"
    assert lives[0].events == ["on_start", "work crash", "on_stop"]
    assert lives[1].events == ["on_start", "work after", "done after"]


async def test_a_crash_in_a_spawned_task_restarts_the_actor(runtime_of: Any) -> None:
    lives: list[Actor] = []

    class Spawning(Actor):
        async def on_start(self) -> None:
            lives.append(self)
            if len(lives) == 1:
                self.context.spawn(self.fail(), name="fail")

        async def fail(self) -> None:
            await asyncio.sleep(0.001)
            raise RuntimeError("a bug in the background")

    runtime = await runtime_of(Spawning)
    await until(lambda: len(lives) == 2 and runtime.state == "ready")
    assert lives[0].context.epoch != lives[1].context.epoch


async def test_spawned_tasks_end_before_on_stop(runtime_of: Any) -> None:
    order: list[str] = []

    class Spawning(Actor):
        async def on_start(self) -> None:
            self.context.spawn(self.wait(), name="wait")

        async def wait(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                order.append("task ended")

        async def on_stop(self) -> None:
            order.append("on_stop")

    runtime = await runtime_of(Spawning)
    await asyncio.sleep(0)
    await runtime.stop()
    assert order == ["task ended", "on_stop"]


async def test_awaiting_something_cancelled_elsewhere_is_a_crash_not_a_silent_end(
    runtime_of: Any, peer: Any
) -> None:
    class Trapped(Actor):
        @handles
        async def work(self, request: Work) -> Done:
            inner = asyncio.create_task(asyncio.sleep(1))
            inner.cancel()
            await inner
            return Done()

    runtime = await runtime_of(Trapped)
    epoch = runtime.epoch
    with pytest.raises(Internal):
        await peer.ask("work", Work(), Done)
    await until(lambda: runtime.state == "ready" and runtime.epoch != epoch)


async def test_a_timeout_of_the_handlers_own_is_a_crash_not_a_spent_budget(
    runtime_of: Any, peer: Any
) -> None:
    class Impatient(Actor):
        @handles
        async def work(self, request: Work) -> Done:
            raise TimeoutError("of something inside")

    await runtime_of(Impatient)
    with pytest.raises(Internal):
        await peer.ask("work", Work(), Done)


async def test_a_failing_presence_is_a_crash(runtime_of: Any) -> None:
    lives: list[Actor] = []

    class Broken(Actor):
        async def on_start(self) -> None:
            lives.append(self)

        def presence(self) -> Presence:
            if len(lives) == 1:
                raise KeyError("bug")
            return Presence()

    runtime = await runtime_of(Broken)
    await until(lambda: len(lives) == 2 and runtime.state == "ready")


async def test_presence_that_cannot_be_sent_is_an_error_and_a_crash_never_silence(
    runtime_of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lives: list[Actor] = []

    class Unsendable(Actor):
        async def on_start(self) -> None:
            lives.append(self)

        def presence(self) -> Presence:
            return Presence(models=[ServedModel(name="m", task="embed", description="\ud800")])

    runtime = await runtime_of(Unsendable)
    async with asyncio.timeout(2):
        assert await runtime.run_until_stopped() == 1
    assert len(lives) == MAX_CRASHES
    assert "announcement_failed" in "".join(capsys.readouterr())


async def test_presence_too_large_for_the_bus_is_a_crash(broker: Any, runtime_of: Any) -> None:
    class Verbose(Actor):
        def presence(self) -> Presence:
            return Presence(in_flight=["x" * (broker.max_payload + 1)])

    runtime = await runtime_of(Verbose)
    async with asyncio.timeout(2):
        assert await runtime.run_until_stopped() == 1


async def test_on_start_raising_at_the_first_start_is_raised_and_leaves_nothing(
    broker: Any, peer: Any
) -> None:
    class Failing(Worker):
        async def on_start(self) -> None:
            raise ConfigurationError("model.path = '/nowhere': no such folder")

    heard = await announcements(broker)
    runtime = unstarted(broker, Failing)
    with pytest.raises(ConfigurationError, match="nowhere"):
        await runtime.start()
    assert runtime.state == "stopped"
    with pytest.raises(Exception, match=r"sage\.v1\.actor\.a-1\.ping"):
        await peer.ask("ping", Ping(), Pong, budget=0.2)
    await until(lambda: [one.state for one in heard][-1:] == ["stopped"])
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_a_task_spawned_in_on_start_that_fails_fails_the_start(broker: Any) -> None:
    class Failing(Actor):
        async def on_start(self) -> None:
            self.context.spawn(self.fail(), name="fail")
            await asyncio.Event().wait()

        async def fail(self) -> None:
            raise ConfigurationError("the engine has no model")

    with pytest.raises(ConfigurationError, match="no model"):
        await unstarted(broker, Failing).start()


async def test_four_failing_restarts_end_the_process(runtime_of: Any, peer: Any) -> None:
    num_starts = 0

    class Fragile(Worker):
        async def on_start(self) -> None:
            nonlocal num_starts
            num_starts += 1
            if num_starts > 1:
                raise OSError("the file is gone")

    runtime = await runtime_of(Fragile)
    with pytest.raises(Internal):
        await peer.ask("work", Work(name="crash"), Done)
    async with asyncio.timeout(2):
        assert await runtime.run_until_stopped() == 1
    assert num_starts == 4


async def test_a_stop_while_starting_ends_the_start(broker: Any, peer: Any) -> None:
    entered = asyncio.Event()

    class Slow(Worker):
        async def on_start(self) -> None:
            entered.set()
            await asyncio.Event().wait()

    runtime = unstarted(broker, Slow)
    starting = asyncio.create_task(runtime.start())
    await entered.wait()
    assert (await peer.ask("ping", Ping(), Pong)).state == "starting"
    await runtime.stop()
    with pytest.raises(Cancelled):
        await starting
    assert runtime.state == "stopped"
    assert await runtime.run_until_stopped() == 0


async def test_a_second_stop_without_drain_cuts_the_drain_short(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Worker)
    actor = runtime.actor
    call = asyncio.create_task(peer.ask("work", Work(name="hold"), Done))
    await until(lambda: "work hold" in actor.events)
    draining = asyncio.create_task(runtime.stop())
    await until(lambda: runtime.state == "draining")
    await runtime.stop(drain=False)
    await draining
    assert "done hold" not in actor.events
    with pytest.raises(Exception, match="is stopping"):
        await call


async def test_on_drain_is_cancelled_at_the_limit(runtime_of: Any) -> None:
    ended = asyncio.Event()

    class Stubborn(Actor):
        async def on_drain(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    runtime = await runtime_of(Stubborn, drain_timeout="20ms")
    await runtime.stop()
    assert ended.is_set()


async def test_handlers_are_still_called_while_on_drain_runs(runtime_of: Any, peer: Any) -> None:
    class Handing(Worker):
        async def on_drain(self) -> None:
            await self.gate.wait()

    runtime = await runtime_of(Handing)
    actor = runtime.actor
    stopping = asyncio.create_task(runtime.stop())
    await until(lambda: runtime.state == "draining")
    assert (await peer.ask("work", Work(name="late"), Done)).name == "late"
    actor.gate.set()
    await stopping


async def test_a_drain_message_is_answered_at_once_and_ends_the_process_cleanly(
    runtime_of: Any, peer: Any
) -> None:
    runtime = await runtime_of(Worker)
    actor = runtime.actor
    call = asyncio.create_task(peer.ask("work", Work(name="hold"), Done))
    await until(lambda: "work hold" in actor.events)
    assert (await peer.ask("drain", Drain(timeout_ms=1000), Draining)).num_in_flight == 1
    actor.gate.set()
    assert (await call).name == "hold"
    assert await runtime.run_until_stopped() == 0


async def test_ping_is_answered_while_every_slot_is_taken(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Worker, max_slots=1, max_mailbox=1)
    calls = [asyncio.create_task(peer.ask("work", Work(name="hold"), Done)) for _ in range(2)]
    await until(lambda: runtime.num_in_flight == 2)
    assert (await peer.ask("ping", Ping(), Pong)).state == "ready"
    runtime.actor.gate.set()
    await asyncio.gather(*calls)


async def test_a_lane_of_one_slot_keeps_messages_in_order(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Worker)
    for number in range(50):
        peer.tell("note", Note(number=number))
    await until(lambda: len(runtime.actor.notes) == 50)
    assert runtime.actor.notes == list(range(50))


async def test_an_ask_of_a_handler_that_is_told_returns_when_it_has_ended(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(Worker)
    assert await peer.ask("note", Note(number=7), Message) == Message()
    assert runtime.actor.notes == [7]


async def test_a_reply_over_the_payload_limit_becomes_an_error_reply(
    broker: Any, runtime_of: Any, peer: Any
) -> None:
    class Verbose(Actor):
        @handles
        async def work(self, request: Work) -> Done:
            return Done(name="x" * (broker.max_payload + 1))

    await runtime_of(Verbose)
    with pytest.raises(LimitExceeded):
        await peer.ask("work", Work(), Done)


async def test_a_cancel_for_an_unknown_call_disturbs_nothing(runtime_of: Any, peer: Any) -> None:
    await runtime_of(Worker)
    peer.bus.publish(subjects.actor("a-1", "work"), b"", {CANCEL: "peer-99"})
    assert (await peer.ask("work", Work(name="x"), Done)).name == "x"


async def test_what_is_asked_inside_a_handler_ends_with_the_outer_budget(runtime_of: Any, peer: Any) -> None:
    class Relay(Actor):
        @handles
        async def work(self, request: Work) -> Done:
            return await self.context.ask(subjects.actor("a-2", "work"), Work(name="hold"), Done, budget=60.0)

    await runtime_of(Worker, actor_id="a-2")
    await runtime_of(Relay)
    with pytest.raises(DeadlineExceeded):
        await peer.ask("work", Work(), Done, budget=0.03)


async def test_a_cancelled_caller_cancels_the_whole_chain(runtime_of: Any, peer: Any) -> None:
    class Relay(Actor):
        @handles
        async def work(self, request: Work) -> Done:
            return await self.context.ask(subjects.actor("a-2", "work"), Work(name="hold"), Done, budget=60.0)

    last = await runtime_of(Worker, actor_id="a-2")
    await runtime_of(Relay)
    call = asyncio.create_task(peer.ask("work", Work(), Done))
    await until(lambda: last.num_in_flight == 1)
    call.cancel()
    await until(lambda: last.num_in_flight == 0)


async def test_control_handlers_do_not_wait_behind_data(runtime_of: Any, peer: Any) -> None:
    class Split(Worker):
        @handles(is_control=True)
        async def urgent(self, request: FindSpans) -> FoundSpans:
            return FoundSpans(actor_id=self.context.actor_id, spans=[])

    runtime = await runtime_of(Split, max_slots=1, max_mailbox=1)
    calls = [asyncio.create_task(peer.ask("work", Work(name="hold"), Done)) for _ in range(2)]
    await until(lambda: runtime.num_in_flight == 2)
    assert (await peer.ask("find_spans", FindSpans(trace_id="0"), FoundSpans)).actor_id == "a-1"
    runtime.actor.gate.set()
    await asyncio.gather(*calls)


async def test_announcements_follow_the_states_of_a_life(broker: Any, runtime_of: Any) -> None:
    heard = await announcements(broker)
    runtime = await runtime_of(Worker)
    await until(lambda: heard and heard[-1].state == "ready")
    await runtime.stop()
    await until(lambda: heard[-1].state == "stopped")
    states = [one.state for one in heard]
    assert list(dict.fromkeys(states)) == [
        state for state in ("starting", "ready", "draining", "stopped") if state in states
    ]
    assert states[0] in ("starting", "ready")
    assert {one.kind for one in heard} == {"test"}
    assert [one.sequence for one in heard] == sorted({one.sequence for one in heard})
    ready = next(one for one in heard if one.state == "ready")
    assert ready.max_in_flight == 4


async def test_many_announcements_in_one_turn_become_one(broker: Any, runtime_of: Any) -> None:
    runtime = await runtime_of(Worker, announce_interval=30)
    heard = await announcements(broker)
    await asyncio.sleep(0.01)
    heard.clear()
    for _ in range(100):
        runtime.actor.context.announce()
    await asyncio.sleep(0.01)
    assert len(heard) == 1


async def test_presence_is_announced_every_interval(broker: Any, runtime_of: Any) -> None:
    heard = await announcements(broker)
    await runtime_of(Worker, announce_interval="5ms")
    await until(lambda: sum(one.state == "ready" for one in heard) >= 4)


async def test_a_restart_is_a_loss_and_a_new_epoch_for_whoever_follows(
    broker: Any, runtime_of: Any, peer: Any
) -> None:
    changes: list[Any] = []
    roster = Roster(broker.connect("roster"))
    roster.subscribe(changes.append)
    await roster.start()
    await runtime_of(Worker)
    await until(lambda: changes and changes[-1].announcement.state == "ready")
    with pytest.raises(Internal):
        await peer.ask("work", Work(name="crash"), Done)
    await until(
        lambda: (
            changes[-1].announcement.state == "ready" and len({c.announcement.epoch for c in changes}) == 2
        )
    )
    kinds = [change.kind for change in changes]
    lost = kinds.index(ChangeKind.DOWN)
    assert changes[lost].is_lost
    assert changes[lost + 1].kind is ChangeKind.UP
    await roster.stop()
