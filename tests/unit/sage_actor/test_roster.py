"""Who is there: properties of the pure state over any sequence of events, and the roster on a bus."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_actor import ChangeKind, Roster, RosterChange, RosterState
from sage_bus import MemoryBroker
from sage_core import BusUnavailable, FakeClock
from sage_wire import encode, subjects
from sage_wire.messages import Announcement, ServedModel


def announcement(actor_id: str = "a", epoch: str = "e1", sequence: int = 1, **facts: Any) -> Announcement:
    values: dict[str, Any] = {"state": "ready", "kind": "test", "version": "0", "host": "h", "pid": 1} | facts
    return Announcement(actor_id=actor_id, epoch=epoch, sequence=sequence, **values)


ANNOUNCED = st.builds(
    announcement,
    actor_id=st.sampled_from("ab"),
    epoch=st.sampled_from(["e1", "e2", "e3"]),
    sequence=st.integers(1, 12),
    state=st.sampled_from(["starting", "ready", "draining", "stopped"]),
    num_in_flight=st.integers(0, 2),
    interval_ms=st.sampled_from([500, 1000]),
)
STEPS = st.lists(st.tuples(st.floats(0, 2), st.one_of(ANNOUNCED, st.none())), max_size=60)


def play(steps: list[tuple[float, Announcement | None]]) -> tuple[RosterState, list[RosterChange], float]:
    state, changes, now = RosterState(), [], 0.0
    for elapsed, event in steps:
        now += elapsed
        changes += state.expire(now)
        if event is not None:
            changes += state.handle(event, now)
    return state, changes, now


@given(STEPS)
def test_changes_of_one_actor_always_read_up_changed_down(steps: Any) -> None:
    state, changes, _ = play(steps)
    present: dict[str, str] = {}
    for change in changes:
        actor_id, epoch = change.announcement.actor_id, change.announcement.epoch
        if change.kind is ChangeKind.UP:
            assert actor_id not in present
            present[actor_id] = epoch
        else:
            assert present[actor_id] == epoch
            if change.kind is ChangeKind.DOWN:
                del present[actor_id]
    assert present == {actor_id: one.epoch for actor_id, one in state.actors.items()}


@given(STEPS)
def test_nobody_is_present_who_stopped_or_fell_silent(steps: Any) -> None:
    state, _, now = play(steps)
    assert all(one.state != "stopped" for one in state.actors.values())
    state.expire(now + 3.0)
    assert state.actors == {}


@given(STEPS)
def test_what_listeners_were_told_last_is_what_is_known(steps: Any) -> None:
    state, changes, _ = play(steps)
    for actor_id, known in state.actors.items():
        told = [change.announcement for change in changes if change.announcement.actor_id == actor_id][-1]
        assert (told.epoch, told.state, told.num_in_flight) == (known.epoch, known.state, known.num_in_flight)


@given(STEPS)
def test_hearing_everything_twice_changes_nothing(steps: Any) -> None:
    once = play(steps)[1]
    twice = play([step for step in steps for step in (step, (0.0, step[1]))])[1]
    # A repeated `stopped` of an absent actor and a repeated announcement are both silent.
    assert twice == once


def test_only_a_change_of_content_is_a_change() -> None:
    state = RosterState()
    assert [change.kind for change in state.handle(announcement(sequence=1), 0.0)] == [ChangeKind.UP]
    assert state.handle(announcement(sequence=2, started_s_ago=5.0), 1.0) == []
    changed = state.handle(announcement(sequence=3, state="draining"), 2.0)
    assert [change.kind for change in changed] == [ChangeKind.CHANGED]
    assert not changed[0].is_lost


def test_silence_of_three_intervals_is_a_loss() -> None:
    state = RosterState()
    state.handle(announcement(interval_ms=1000), 10.0)
    assert state.next_expiry == 13.0
    assert state.expire(12.99) == []
    lost = state.expire(13.0)
    assert [(change.kind, change.is_lost) for change in lost] == [(ChangeKind.DOWN, True)]
    assert state.next_expiry is None


def test_a_clean_stop_is_no_loss() -> None:
    state = RosterState()
    state.handle(announcement(sequence=1), 0.0)
    gone = state.handle(announcement(sequence=2, state="stopped"), 1.0)
    assert [(change.kind, change.is_lost) for change in gone] == [(ChangeKind.DOWN, False)]


def test_a_new_epoch_is_the_loss_of_the_old_life_and_late_words_of_it_are_ignored() -> None:
    state = RosterState()
    state.handle(announcement(epoch="old"), 0.0)
    changes = state.handle(announcement(epoch="new"), 0.1)
    assert [(change.kind, change.is_lost, change.announcement.epoch) for change in changes] == [
        (ChangeKind.DOWN, True, "old"),
        (ChangeKind.UP, False, "new"),
    ]
    assert state.handle(announcement(epoch="old", sequence=2, state="stopped"), 0.2) == []
    assert state.actors["a"].epoch == "new"


def test_a_huge_interval_does_not_make_immortal() -> None:
    state = RosterState()
    state.handle(announcement(interval_ms=10**12), 0.0)
    assert state.expire(3 * 60.0) != []


async def turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_roster_asks_everybody_at_its_start_and_after_a_reconnect() -> None:
    broker = MemoryBroker()
    asked: list[str] = []
    witness, bus = broker.connect("witness"), broker.connect("roster")
    await witness.subscribe(subjects.every("discover"), lambda message: asked.append(message.subject))
    roster = Roster(bus)
    await roster.start()
    await turns()
    assert len(asked) == 1
    bus.disconnect()
    bus.reconnect()
    await turns()
    assert len(asked) == 2
    await roster.stop()


async def test_nobody_expires_while_our_own_connection_is_gone() -> None:
    broker, clock = MemoryBroker(), FakeClock()
    bus, other = broker.connect("roster"), broker.connect("a")
    changes: list[RosterChange] = []
    roster = Roster(bus, clock)
    roster.subscribe(changes.append)
    await roster.start()
    other.publish(subjects.announce("test", "a"), encode(announcement(interval_ms=5)))
    await turns()
    bus.disconnect()
    clock.advance(60.0)
    await asyncio.sleep(0.03)
    assert list(roster.actors) == ["a"]
    bus.reconnect()
    await turns()
    assert list(roster.actors) == ["a"]
    clock.advance(0.02)
    await asyncio.sleep(0.03)
    assert [change.kind for change in changes] == [ChangeKind.UP, ChangeKind.DOWN]
    await roster.stop()


async def test_nobody_expires_while_the_server_is_frozen_and_the_connection_has_not_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker, clock = MemoryBroker(), FakeClock()
    bus, other = broker.connect("roster"), broker.connect("a")
    roster = Roster(bus, clock)
    await roster.start()
    other.publish(subjects.announce("test", "a"), encode(announcement(interval_ms=5)))
    await turns()

    async def frozen(timeout: float = 2.0) -> float:
        raise BusUnavailable(f"a message of ours did not come back within {timeout} s")

    with monkeypatch.context() as patch:
        patch.setattr(type(bus), "round_trip", lambda _, timeout=2.0: frozen(timeout))
        clock.advance(0.5)
        await asyncio.sleep(0.03)
        assert list(roster.actors) == ["a"]
    clock.advance(0.5)
    await asyncio.sleep(0.04)
    assert list(roster.actors) == [], "the server answers again, and the actor still says nothing"
    await roster.stop()


async def test_one_failing_listener_does_not_cost_the_others_the_change() -> None:
    broker = MemoryBroker()
    bus, other = broker.connect("roster"), broker.connect("a")
    heard: list[RosterChange] = []
    roster = Roster(bus)
    roster.subscribe(lambda _: 1 / 0)  # type: ignore[arg-type]
    unsubscribe = roster.subscribe(heard.append)
    await roster.start()
    other.publish(
        subjects.announce("test", "a"), encode(announcement(models=[ServedModel(name="m", task="embed")]))
    )
    await turns()
    assert [change.announcement.models[0].name for change in heard] == ["m"]
    unsubscribe()
    other.publish(subjects.announce("test", "a"), encode(announcement(sequence=2)))
    await turns()
    assert len(heard) == 1
    await roster.stop()


async def test_nobody_speaks_for_another_and_garbage_is_refused() -> None:
    broker = MemoryBroker()
    bus, other = broker.connect("roster"), broker.connect("mallory")
    roster = Roster(bus)
    await roster.start()
    other.publish(subjects.announce("test", "mallory"), encode(announcement(actor_id="alice")))
    other.publish(subjects.announce("test", "mallory"), b"\xc1 not msgpack")
    await turns()
    assert roster.actors == {}
    await roster.stop()


async def test_a_follower_hears_every_announcement_in_order_after_the_changes_it_made() -> None:
    broker = MemoryBroker()
    bus, other = broker.connect("roster"), broker.connect("a")
    heard: list[tuple[str, int]] = []
    roster = Roster(bus)
    roster.subscribe(lambda change: heard.append((change.kind.value, change.announcement.sequence)))
    roster.follow(lambda announcement: heard.append(("heard", announcement.sequence)))
    await roster.start()
    for sequence in (1, 2, 2, 1, 3):
        other.publish(subjects.announce("test", "a"), encode(announcement(sequence=sequence)))
    await turns()
    assert heard == [("up", 1), ("heard", 1), ("heard", 2), ("heard", 3)], "old ones are refused"
    other.publish(subjects.announce("test", "a"), encode(announcement(sequence=4, state="stopped")))
    await turns()
    assert heard[4:] == [("down", 4)], "who is gone is not present"
    await roster.stop()
