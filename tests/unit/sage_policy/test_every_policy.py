"""Promises that every policy keeps, whatever it makes of its layers: native ones, their ablations, the Python base."""

from __future__ import annotations

import pytest

from sage_policy import (
    Cancelled,
    Dispatch,
    EngineProfile,
    Finished,
    FirstToken,
    InstanceDown,
    Policy,
    PoolClosed,
    Progressed,
    SetTimer,
    Shed,
    Started,
    Telemetry,
    Timer,
)
from unit.sage_policy.drivers import (
    ALL,
    POOL,
    aborts,
    comparable,
    dispatches,
    make,
    sheds,
    submitted,
    up,
)


@pytest.fixture(params=ALL)
def policy(request: pytest.FixtureRequest) -> Policy:
    return make(request.param)


def full(policy: Policy, *instances: str) -> Policy:
    """One slot on each instance, all taken."""
    for name in instances or ("a",):
        policy.handle(up(name), 0.0)
    for name in instances or ("a",):
        policy.handle(submitted(f"running-{name}/0"), 0.0)
    return policy


def test_work_is_held_above_full_instances_and_leaves_when_a_slot_frees(policy: Policy) -> None:
    policy.handle(up("a"), 0.0)
    assert dispatches(policy.handle(submitted("r/0"), 0.0)) == [("r/0", "a")]
    assert dispatches(policy.handle(submitted("r/1"), 1.0)) == []
    commands = policy.handle(Finished("r/0"), 3.0)
    assert dispatches(commands) == [("r/1", "a")]
    (dispatch,) = [c for c in commands if isinstance(c, Dispatch)]
    assert dispatch.decision.queue_seconds == 2.0


def test_higher_priority_leaves_the_queue_first_and_equals_in_order_of_arrival(policy: Policy) -> None:
    full(policy)
    for key, priority in (("low/0", 0), ("high/0", 1), ("low/1", 0)):
        policy.handle(submitted(key, priority=priority), 0.0)
    assert [key for key, _ in dispatches(policy.handle(up("b", 3), 0.0))] == ["high/0", "low/0", "low/1"]


def test_urgent_tiers_leave_the_queue_first(policy: Policy) -> None:
    full(policy)
    for slo_class in ("batch", "normal", "interactive"):
        policy.handle(submitted(f"{slo_class}/0", slo_class=slo_class), 0.0)
    served = [key for key, _ in dispatches(policy.handle(up("b", 8), 0.0))]
    assert served == ["interactive/0", "normal/0", "batch/0"]


def test_expired_work_is_shed_from_the_queue_at_its_deadline(policy: Policy) -> None:
    full(policy)
    assert SetTimer(5.0) in policy.handle(submitted("r/0", deadline=5.0), 0.0)
    assert sheds(policy.handle(Timer(), 5.0)) == [("r/0", "deadline_exceeded")]


def test_work_whose_budget_is_spent_is_refused_on_arrival(policy: Policy) -> None:
    policy.handle(up("a"), 0.0)
    assert sheds(policy.handle(submitted("r/0", deadline=5.0), 5.0)) == [("r/0", "deadline_exceeded")]


def test_a_pool_that_nobody_serves_refuses_at_once_and_says_when_to_try_again(policy: Policy) -> None:
    policy.handle(up("a"), 0.0)
    (shed,) = policy.handle(submitted("r/0", pool="another"), 0.0)
    assert isinstance(shed, Shed)
    assert (shed.key, shed.code, shed.retry_after) == ("r/0", "overloaded", 1.0)


def test_work_waits_for_a_pool_that_has_lost_its_last_instance(policy: Policy) -> None:
    policy.handle(up("a"), 0.0)
    policy.handle(InstanceDown("a", POOL, is_lost=True), 0.0)
    assert sheds(policy.handle(submitted("r/0"), 0.0)) == []
    assert dispatches(policy.handle(up("b"), 1.0)) == [("r/0", "b")]


@pytest.mark.parametrize("name", ALL)
def test_a_full_queue_refuses_with_a_time_to_retry_after(name: str) -> None:
    policy = full(make(name, max_queued=1))
    policy.handle(submitted("r/0"), 0.0)
    (shed,) = [c for c in policy.handle(submitted("r/1"), 0.0) if isinstance(c, Shed)]
    assert (shed.key, shed.code) == ("r/1", "overloaded")
    assert shed.retry_after is not None
    assert 1.0 <= shed.retry_after <= 60.0


def test_cancelling_queued_work_sheds_it_and_running_work_aborts_it(policy: Policy) -> None:
    full(policy)
    policy.handle(submitted("wait/0"), 0.0)
    assert sheds(policy.handle(Cancelled("wait/0"), 1.0)) == [("wait/0", "cancelled")]
    assert aborts(policy.handle(Cancelled("running-a/0"), 1.0)) == [("running-a/0", "a")]


def test_an_aborted_request_keeps_its_slot_until_its_instance_reports(policy: Policy) -> None:
    full(policy)
    policy.handle(Cancelled("running-a/0"), 0.0)
    assert dispatches(policy.handle(submitted("next/0"), 0.0)) == []
    assert dispatches(policy.handle(Finished("running-a/0"), 0.0)) == [("next/0", "a")]


def test_a_lost_instance_sheds_what_it_ran_as_worker_lost(policy: Policy) -> None:
    full(policy)
    lost = policy.handle(InstanceDown("a", POOL, is_lost=True), 1.0)
    assert sheds(lost) == [("running-a/0", "worker_lost")]
    assert policy.handle(Finished("running-a/0"), 2.0) == [], "a late report of it changes nothing"


def test_a_draining_instance_finishes_but_takes_nothing_new(policy: Policy) -> None:
    policy.handle(up("a", 2), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    assert policy.handle(InstanceDown("a", POOL, is_lost=False), 1.0) == []
    assert dispatches(policy.handle(submitted("r/1"), 1.0)) == []
    policy.handle(Finished("r/0"), 2.0)
    assert dispatches(policy.handle(up("b"), 3.0)) == [("r/1", "b")]


def test_a_draining_instance_that_comes_back_takes_work_again(policy: Policy) -> None:
    policy.handle(up("a", 2), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    policy.handle(InstanceDown("a", POOL, is_lost=False), 1.0)
    policy.handle(submitted("r/1"), 1.0)
    assert dispatches(policy.handle(up("a", 2, ("r/0",)), 2.0)) == [("r/1", "a")]


def test_a_dispatch_that_its_instance_no_longer_lists_frees_the_slot_after_the_grace(policy: Policy) -> None:
    full(policy)
    policy.handle(submitted("next/0"), 0.0)
    assert dispatches(policy.handle(up("a"), 1.0)) == [], "the announcement may be older than the dispatch"
    assert dispatches(policy.handle(up("a"), 4.0)) == [("next/0", "a")]


def test_a_dispatch_that_never_arrived_is_reported_lost_so_that_its_consumer_tries_again(
    policy: Policy,
) -> None:
    full(policy)
    assert sheds(policy.handle(up("a"), 2.0)) == []
    assert sheds(policy.handle(up("a"), 4.0)) == [("running-a/0", "worker_lost")]
    assert policy.handle(up("a"), 8.0) == [], "it is gone only once"


def test_a_request_that_has_just_ended_is_not_lost_while_its_report_is_behind_the_announcement(
    policy: Policy,
) -> None:
    full(policy)
    policy.handle(up("a", 1, ("running-a/0",)), 9.9)
    assert policy.handle(up("a"), 10.0) == []
    assert policy.handle(Finished("running-a/0"), 10.1) == []
    assert policy.handle(up("a"), 15.0) == []


def test_what_an_earlier_scheduler_dispatched_takes_its_slots(policy: Policy) -> None:
    policy.handle(up("a", 2, ("old/0", "old/1")), 0.0)
    assert dispatches(policy.handle(submitted("new/0"), 0.0)) == []
    assert dispatches(policy.handle(Finished("old/1"), 1.0)) == [("new/0", "a")]


def test_a_queued_request_that_an_instance_already_runs_is_not_dispatched_again(policy: Policy) -> None:
    full(policy)
    policy.handle(submitted("r/0"), 0.0)
    assert policy.handle(up("b", 1, ("r/0",)), 1.0) == []
    policy.handle(Finished("running-a/0"), 2.0)
    assert aborts(policy.handle(Cancelled("r/0"), 3.0)) == [("r/0", "b")]


def test_a_report_on_a_request_that_still_waits_changes_nothing(policy: Policy) -> None:
    """It is of an earlier scheduler's dispatch: the consumer has submitted the request again since."""
    full(policy)
    policy.handle(submitted("r/0"), 0.0)
    for report in (Started("r/0"), FirstToken("r/0"), Progressed("r/0", 3), Finished("r/0", 4)):
        assert policy.handle(report, 1.0) == []
    assert dispatches(policy.handle(Finished("running-a/0"), 2.0)) == [("r/0", "a")]
    assert dispatches(policy.handle(submitted("next/0"), 2.0)) == []
    assert dispatches(policy.handle(Finished("r/0"), 3.0)) == [("next/0", "a")]


def test_batch_work_leaves_the_last_quarter_of_the_slots_to_urgent_work(policy: Policy) -> None:
    policy.handle(up("a", 4), 0.0)
    for number in range(5):
        policy.handle(submitted(f"batch{number}/0", slo_class="batch"), 0.0)
    assert dispatches(policy.handle(submitted("urgent/0"), 0.0)) == [("urgent/0", "a")]
    assert dispatches(policy.handle(Finished("urgent/0"), 1.0)) == []
    assert dispatches(policy.handle(Finished("batch0/0"), 1.0)) == [("batch3/0", "a")]


def test_batch_work_runs_on_an_instance_with_a_single_slot(policy: Policy) -> None:
    policy.handle(up("a", 1), 0.0)
    assert dispatches(policy.handle(submitted("batch/0", slo_class="batch"), 0.0)) == [("batch/0", "a")]


def test_a_repeated_submit_changes_nothing(policy: Policy) -> None:
    policy.handle(up("a", 4), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    assert policy.handle(submitted("r/0"), 0.0) == []


def test_a_key_may_be_submitted_again_once_it_is_gone(policy: Policy) -> None:
    policy.handle(up("a"), 0.0)
    for now in (0.0, 1.0):
        assert dispatches(policy.handle(submitted("r/0"), now)) == [("r/0", "a")]
        policy.handle(Finished("r/0"), now)


def test_unknown_requests_instances_and_pools_are_ignored(policy: Policy) -> None:
    nothing = (
        Started("x/0"),
        FirstToken("x/0"),
        Progressed("x/0", 1),
        Finished("x/0"),
        Cancelled("x/0"),
        InstanceDown("x", POOL, is_lost=True),
        InstanceDown("x", "another", is_lost=True),
        Telemetry("x", POOL, 1, 1, 0.5),
        Telemetry("x", "another", 1, 1, 0.5),
        PoolClosed("another"),
        Timer(),
    )
    assert [policy.handle(event, 0.0) for event in nothing] == [[]] * len(nothing)
    policy.handle(up("a"), 0.0)
    assert [policy.handle(event, 1.0) for event in nothing] == [[]] * len(nothing)
    assert dispatches(policy.handle(submitted("r/0"), 2.0)) == [("r/0", "a")]


def test_pools_do_not_touch_each_other(policy: Policy) -> None:
    full(policy)
    policy.handle(up("a", pool="another"), 0.0)
    policy.handle(submitted("wait/0"), 0.0)
    assert dispatches(policy.handle(submitted("r/0", pool="another"), 0.0)) == [("r/0", "a")]
    lost = policy.handle(InstanceDown("a", "another", is_lost=True), 1.0)
    assert sheds(lost) == [("r/0", "worker_lost")]
    assert dispatches(policy.handle(Finished("running-a/0"), 1.0)) == [("wait/0", "a")]


def test_a_closed_pool_is_forgotten_and_commands_nothing(policy: Policy) -> None:
    full(policy)
    policy.handle(up("a", pool="another"), 0.0)
    policy.handle(submitted("wait/0", deadline=5.0), 0.0)
    assert policy.handle(PoolClosed(POOL), 1.0) == []
    for event in (
        Finished("running-a/0"),
        Cancelled("wait/0"),
        Timer(),
        InstanceDown("a", POOL, is_lost=True),
    ):
        assert [c for c in policy.handle(event, 6.0) if not isinstance(c, SetTimer)] == []
    assert dispatches(policy.handle(submitted("r/0", pool="another"), 7.0)) == [("r/0", "a")]


def test_a_pool_can_be_led_again_after_it_was_closed(policy: Policy) -> None:
    full(policy)
    policy.handle(submitted("wait/0"), 0.0)
    policy.handle(PoolClosed(POOL), 1.0)
    policy.handle(up("a", 2, ("running-a/0",)), 2.0)
    assert dispatches(policy.handle(submitted("wait/0"), 2.0)) == [("wait/0", "a")]


def test_a_new_limit_of_an_instance_holds_at_once(policy: Policy) -> None:
    full(policy)
    policy.handle(submitted("wait/0"), 0.0)
    assert dispatches(policy.handle(up("a", 2, ("running-a/0",)), 1.0)) == [("wait/0", "a")]
    policy.handle(up("a", 1, ("running-a/0", "wait/0")), 2.0)
    policy.handle(submitted("next/0"), 2.0)
    assert dispatches(policy.handle(Finished("wait/0"), 3.0)) == []


@pytest.mark.parametrize("name", ALL)
def test_the_same_events_give_the_same_commands(name: str) -> None:
    one, other = make(name, seed=7), make(name, seed=7)
    script: list[tuple[float, object]] = [(0.0, up(instance, 3)) for instance in "abcde"]
    script += [(0.01 * number, submitted(f"{number}/0", num_prompt_tokens=100)) for number in range(40)]
    script += [(1.0 + 0.01 * number, Finished(f"{number}/0", 5)) for number in range(40)]
    for now, event in script:
        assert comparable(one.handle(event, now)) == comparable(other.handle(event, now))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL)
def test_every_decision_says_why(name: str) -> None:
    policy = full(make(name, max_queued=1))
    for event in (submitted("r/0"), submitted("r/1"), Cancelled("running-a/0"), Finished("running-a/0")):
        for command in policy.handle(event, 1.0):
            if not isinstance(command, SetTimer):
                assert command.decision.reason


def test_a_prompt_longer_than_every_context_is_refused_for_good(policy: Policy) -> None:
    policy.handle(up("a", 4, profile=EngineProfile(max_context=1000)), 0.0)
    policy.handle(up("b", 4, profile=EngineProfile(max_context=2000)), 0.0)
    (shed,) = [c for c in policy.handle(submitted("r/0", num_prompt_tokens=2000), 0.0) if isinstance(c, Shed)]
    assert (shed.key, shed.code, shed.retry_after) == ("r/0", "context_length_exceeded", None)
    assert dispatches(policy.handle(submitted("r/1", num_prompt_tokens=1999), 0.0)) == [("r/1", "b")]


def test_a_prompt_is_refused_once_the_only_instance_with_enough_context_has_gone(policy: Policy) -> None:
    policy.handle(up("a", 1, ("old/0",), profile=EngineProfile(max_context=2000)), 0.0)
    policy.handle(up("b", 1, profile=EngineProfile(max_context=1000)), 0.0)
    assert sheds(policy.handle(submitted("r/0", num_prompt_tokens=1500), 0.0)) == []
    gone = policy.handle(InstanceDown("a", POOL, is_lost=False), 1.0)
    assert sheds(gone) == [("r/0", "context_length_exceeded")]


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith(("least-outstanding", "python"))])
def test_least_outstanding_chooses_the_instance_with_the_fewest_requests(name: str) -> None:
    policy = make(name)
    policy.handle(up("a", 4, ("old/0", "old/1")), 0.0)
    policy.handle(up("b", 4, ("old/2",)), 0.0)
    assert dispatches(policy.handle(submitted("r/0"), 0.0)) == [("r/0", "b")]
