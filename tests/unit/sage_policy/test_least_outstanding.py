"""Promises of the first policy, and the conservation laws every policy must keep."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sage_policy import (
    Abort,
    Cancelled,
    Command,
    Dispatch,
    Event,
    Finished,
    Instance,
    InstanceDown,
    InstanceUp,
    LeastOutstanding,
    SetTimer,
    Shed,
    Submitted,
    Timer,
)

POOL = "model"


def submitted(key: str, deadline: float = 100.0, priority: int = 0) -> Submitted:
    return Submitted(key=key, pool=POOL, deadline=deadline, priority=priority)


def up(name: str, max_in_flight: int = 1, in_flight: tuple[str, ...] = ()) -> InstanceUp:
    return InstanceUp(Instance(name, POOL, max_in_flight, in_flight))


def dispatches(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.key, c.instance_id) for c in commands if isinstance(c, Dispatch)]


def sheds(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.key, c.code) for c in commands if isinstance(c, Shed)]


def test_the_instance_with_fewest_outstanding_is_chosen() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 4, ("old/0", "old/1")), 0.0)
    policy.handle(up("b", 4, ("old/2",)), 0.0)
    assert dispatches(policy.handle(submitted("r/0"), 0.0)) == [("r/0", "b")]


def test_work_is_held_above_full_instances_and_leaves_when_a_slot_frees() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a"), 0.0)
    assert dispatches(policy.handle(submitted("r/0"), 0.0)) == [("r/0", "a")]
    assert dispatches(policy.handle(submitted("r/1"), 1.0)) == []
    commands = policy.handle(Finished("r/0"), 3.0)
    assert dispatches(commands) == [("r/1", "a")]
    (dispatch,) = [c for c in commands if isinstance(c, Dispatch)]
    assert dispatch.decision.queue_seconds == 2.0


def test_higher_priority_leaves_the_queue_first_and_equals_in_order_of_arrival() -> None:
    policy = LeastOutstanding()
    for key, priority in (("low/0", 0), ("high/0", 1), ("low/1", 0)):
        policy.handle(submitted(key, priority=priority), 0.0)
    assert [key for key, _ in dispatches(policy.handle(up("a", 3), 0.0))] == ["high/0", "low/0", "low/1"]


def test_expired_work_is_shed_from_the_queue_at_its_deadline() -> None:
    policy = LeastOutstanding()
    commands = policy.handle(submitted("r/0", deadline=5.0), 0.0)
    assert commands == [SetTimer(5.0)]
    assert sheds(policy.handle(Timer(), 5.0)) == [("r/0", "deadline_exceeded")]


def test_a_full_queue_refuses_with_a_time_to_retry_after() -> None:
    policy = LeastOutstanding(max_queued=1)
    policy.handle(submitted("r/0"), 0.0)
    (shed,) = [c for c in policy.handle(submitted("r/1"), 0.0) if isinstance(c, Shed)]
    assert (shed.key, shed.code) == ("r/1", "overloaded")
    assert shed.retry_after is not None
    assert 1.0 <= shed.retry_after <= 60.0


def test_cancelling_queued_work_sheds_it_and_running_work_aborts_it() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a"), 0.0)
    policy.handle(submitted("run/0"), 0.0)
    policy.handle(submitted("wait/0"), 0.0)
    assert sheds(policy.handle(Cancelled("wait/0"), 1.0)) == [("wait/0", "cancelled")]
    (abort,) = [c for c in policy.handle(Cancelled("run/0"), 1.0) if isinstance(c, Abort)]
    assert (abort.key, abort.instance_id) == ("run/0", "a")


def test_an_aborted_request_keeps_its_slot_until_its_instance_reports() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a"), 0.0)
    policy.handle(submitted("run/0"), 0.0)
    policy.handle(Cancelled("run/0"), 0.0)
    assert dispatches(policy.handle(submitted("next/0"), 0.0)) == []
    assert dispatches(policy.handle(Finished("run/0"), 0.0)) == [("next/0", "a")]


def test_a_lost_instance_sheds_what_it_ran_as_worker_lost() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 2), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    assert sheds(policy.handle(InstanceDown("a", POOL, is_lost=True), 1.0)) == [("r/0", "worker_lost")]


def test_a_draining_instance_finishes_but_takes_nothing_new() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 2), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    assert policy.handle(InstanceDown("a", POOL, is_lost=False), 1.0) == []
    assert dispatches(policy.handle(submitted("r/1"), 1.0)) == []
    policy.handle(Finished("r/0"), 2.0)
    assert dispatches(policy.handle(up("b"), 3.0)) == [("r/1", "b")]


def test_a_dispatch_that_its_instance_no_longer_lists_frees_the_slot_after_the_grace() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a"), 0.0)
    policy.handle(submitted("lost-report/0"), 0.0)
    policy.handle(submitted("next/0"), 0.0)
    assert dispatches(policy.handle(up("a"), 1.0)) == [], "the announcement may be older than the dispatch"
    assert dispatches(policy.handle(up("a"), 4.0)) == [("next/0", "a")]


def test_a_dispatch_that_never_arrived_is_reported_lost_so_that_its_consumer_tries_again() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a"), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    assert sheds(policy.handle(up("a"), 2.0)) == []
    assert sheds(policy.handle(up("a"), 4.0)) == [("r/0", "worker_lost")]
    assert policy.handle(up("a"), 8.0) == [], "it is gone only once"


def test_a_request_that_has_just_ended_is_not_lost_while_its_report_is_behind_the_announcement() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a"), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    policy.handle(up("a", 1, ("r/0",)), 9.9)
    assert policy.handle(up("a"), 10.0) == []
    assert policy.handle(Finished("r/0"), 10.1) == []
    assert policy.handle(up("a"), 15.0) == []


def test_batch_work_leaves_the_last_quarter_of_the_slots_to_urgent_work() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 4), 0.0)
    for number in range(5):
        policy.handle(submitted(f"batch{number}/0", priority=-1), 0.0)
    assert dispatches(policy.handle(submitted("urgent/0"), 0.0)) == [("urgent/0", "a")]
    assert dispatches(policy.handle(Finished("urgent/0"), 1.0)) == []
    assert dispatches(policy.handle(Finished("batch0/0"), 1.0)) == [("batch3/0", "a")]


def test_batch_work_runs_on_an_instance_with_a_single_slot() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 1), 0.0)
    assert dispatches(policy.handle(submitted("batch/0", priority=-1), 0.0)) == [("batch/0", "a")]


def test_a_repeated_submit_changes_nothing() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 4), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    assert policy.handle(submitted("r/0"), 0.0) == []


KEYS = [f"r{i}/0" for i in range(8)]
events = st.one_of(
    st.builds(submitted, st.sampled_from(KEYS), st.floats(1, 30), st.integers(-1, 2)),
    st.builds(Cancelled, st.sampled_from(KEYS)),
    st.builds(Finished, st.sampled_from(KEYS)),
    st.builds(up, st.sampled_from("abc"), st.integers(0, 3)),
    st.builds(InstanceDown, st.sampled_from("abc"), st.just(POOL), st.booleans()),
    st.just(Timer()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2), events), max_size=60), st.integers(1, 4))
def test_every_request_leaves_exactly_once_and_limits_hold(
    script: list[tuple[float, Event]], max_queued: int
) -> None:
    """Conservation: submitted = queued + running + shed + finished, whatever happens in whatever order."""
    policy, twin = LeastOutstanding(max_queued=max_queued), LeastOutstanding(max_queued=max_queued)
    now = 0.0
    limits: dict[str, int] = {}
    waiting: set[str] = set()
    running: dict[str, str] = {}
    for step, event in script:
        now += step
        commands = policy.handle(event, now)
        assert commands == twin.handle(event, now), "the same events give the same commands"
        match event:
            case Submitted(key) if key not in running:
                waiting.add(key)
            case Finished(key):
                running.pop(key, None)
            case InstanceUp(instance):
                limits[instance.instance_id] = instance.max_in_flight
            case InstanceDown(instance_id):
                limits.pop(instance_id, None)
        for command in commands:
            match command:
                case Dispatch(key, instance_id):
                    assert key in waiting, "only waiting work is dispatched"
                    waiting.remove(key)
                    running[key] = instance_id
                    assert sum(1 for i in running.values() if i == instance_id) <= limits[instance_id]
                case Shed(key):
                    assert key in waiting or key in running, "nothing is shed twice"
                    waiting.discard(key)
                    running.pop(key, None)
                case Abort(key, instance_id):
                    assert running[key] == instance_id
                case SetTimer(at):
                    assert at >= now
        assert waiting == set(policy._queued)
        assert running == policy._placed
        assert len(waiting) <= max_queued
