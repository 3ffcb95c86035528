"""The base of policies written in Python: the native policy's twin, and what a subclass can decide."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_policy import (
    Cancelled,
    Command,
    Dispatch,
    EngineProfile,
    Event,
    Finished,
    FirstToken,
    InstanceDown,
    InstanceUp,
    InstanceView,
    LeastOutstanding,
    PlacementPolicy,
    PoolClosed,
    Progressed,
    SetTimer,
    SloClass,
    Submitted,
    Telemetry,
    Timer,
)
from unit.sage_policy.drivers import POOL, Driver, aborts, dispatches, executor, make, sheds, submitted, up

KEYS = [f"r{i}/0" for i in range(10)]
OTHER_KEYS = [f"q{i}/0" for i in range(6)]
ANY_KEY = st.sampled_from(KEYS + OTHER_KEYS)


def requests(keys: list[str], pool: str) -> st.SearchStrategy[Submitted]:
    return st.builds(
        submitted,
        st.sampled_from(keys),
        st.floats(1, 30),
        st.integers(-1, 2),
        pool=st.just(pool),
        slo_class=st.sampled_from(["interactive", "interactive", "normal", "batch"]),
    )


EVENTS: st.SearchStrategy[Event] = st.one_of(
    requests(KEYS, POOL),
    requests(KEYS, POOL),
    requests(OTHER_KEYS, "other"),
    st.builds(Cancelled, ANY_KEY),
    st.builds(Finished, ANY_KEY, st.integers(0, 100)),
    st.builds(FirstToken, ANY_KEY),
    st.builds(up, st.sampled_from("abcd"), st.integers(0, 5)),
    st.builds(up, st.sampled_from("abcd"), st.integers(0, 5)),
    st.builds(up, st.sampled_from("ab"), st.integers(0, 3), pool=st.just("other")),
    st.builds(InstanceDown, st.sampled_from("abcd"), st.sampled_from([POOL, "other"]), st.booleans()),
    st.builds(PoolClosed, st.just("other")),
    st.just(Timer()),
)
SCRIPTS = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.7, 4.0]), EVENTS), max_size=80)


def what_matters(commands: list[Command]) -> object:
    """What both must command. Reasons, scores and the time to retry after are each one's own."""
    return (
        [(c.key, c.instance_id, c.batch) for c in commands if isinstance(c, Dispatch)],
        aborts(commands),
        sorted(sheds(commands)),
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SCRIPTS, st.integers(0, 5), st.integers(1, 8))
def test_least_outstanding_in_python_commands_what_the_native_one_does(
    script: list[tuple[float, Event]], seed: int, max_queued: int
) -> None:
    """Random ties included: both draw the same numbers."""
    python = LeastOutstanding(seed=seed, max_queued=max_queued)
    native = make("least-outstanding+hold", seed=seed, max_queued=max_queued)
    now = 0.0
    for step, event in script:
        now += step
        if isinstance(event, Submitted):
            event = replace(event, deadline=now + event.deadline)
        assert what_matters(python.handle(event, now)) == what_matters(native.handle(event, now))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 900), st.booleans(), st.sampled_from([0.0, 0.5])),
        max_size=30,
    )
)
def test_batches_in_python_are_those_of_the_native_eager_batcher(
    script: list[tuple[int, int, bool, float]],
) -> None:
    python, native = LeastOutstanding(), make("least-outstanding+hold")
    profile = EngineProfile(max_sequences=20, max_step_tokens=4000)
    for policy in (python, native):
        policy.handle(executor("a", profile, max_in_flight=8), 0.0)
    now, running = 0.0, []
    for number, (num_items, tokens_per_item, does_finish, step) in enumerate(script):
        now += step
        event = submitted(
            f"{number}/0", 1e6, num_items=num_items, num_prompt_tokens=num_items * tokens_per_item
        )
        commands = python.handle(event, now)
        assert what_matters(commands) == what_matters(native.handle(event, now))
        running += [key for key, _ in dispatches(commands)]
        while does_finish and running:
            end = Finished(running.pop(0))
            commands = python.handle(end, now)
            assert what_matters(commands) == what_matters(native.handle(end, now))
            running += [key for key, _ in dispatches(commands)]


class LastInstance(PlacementPolicy):
    """Prefers late names, takes prompts in order of length, and holds long ones back where anything runs."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.learned: list[tuple[str, str, int]] = []

    def score(self, request: Submitted, instance: InstanceView) -> float:
        return -ord(instance.instance.instance_id)

    def may_take(self, request: Submitted, instance: InstanceView) -> bool:
        return request.num_prompt_tokens < 1000 or instance.num_running == 0

    def key(self, request: Submitted) -> float:
        return request.num_prompt_tokens

    def finished(self, request: Submitted, instance: InstanceView, num_tokens: int) -> None:
        self.learned.append((request.key, instance.instance.instance_id, num_tokens))


def test_the_lowest_score_wins_until_that_instance_is_full() -> None:
    policy = LastInstance()
    for name in "abc":
        policy.handle(up(name, 2), 0.0)
    placed = [dispatches(policy.handle(submitted(f"{i}/0"), 0.0))[0][1] for i in range(6)]
    assert placed == ["c", "c", "b", "b", "a", "a"]


def test_a_request_that_an_instance_may_not_take_waits_and_lets_others_pass() -> None:
    policy = LastInstance()
    policy.handle(up("a", 4), 0.0)
    policy.handle(submitted("short/0", num_prompt_tokens=10), 0.0)
    assert dispatches(policy.handle(submitted("long/0", num_prompt_tokens=5000), 0.0)) == []
    assert dispatches(policy.handle(submitted("short/1", num_prompt_tokens=10), 0.0)) == [("short/1", "a")]
    policy.handle(Finished("short/0"), 1.0)
    assert dispatches(policy.handle(Finished("short/1"), 1.0)) == [("long/0", "a")]


def test_the_key_orders_what_waits_within_a_priority() -> None:
    policy = LastInstance()
    policy.handle(up("a", 1), 0.0)
    policy.handle(submitted("first/0"), 0.0)
    for number, num_tokens in enumerate((300, 100, 200)):
        policy.handle(submitted(f"{number}/0", num_prompt_tokens=num_tokens), 0.0)
    policy.handle(submitted("important/0", priority=1, num_prompt_tokens=900), 0.0)
    served = [key for key, _ in dispatches(policy.handle(up("b", 8), 0.0))]
    assert served == ["important/0", "1/0", "2/0", "0/0"]


def test_a_policy_hears_of_what_finished_and_how_long_its_output_was() -> None:
    policy = LastInstance()
    policy.handle(up("a", 2, ("old/0",)), 0.0)
    policy.handle(submitted("r/0"), 0.0)
    policy.handle(Finished("old/0", 3), 1.0)
    policy.handle(Finished("r/0", 42), 1.0)
    assert policy.learned == [("r/0", "a", 42)], "of an earlier scheduler's work nothing is known"


def test_an_instance_view_tells_what_runs_there() -> None:
    seen: list[tuple[int, int, int]] = []

    class Looking(PlacementPolicy):
        def score(self, request: Submitted, instance: InstanceView) -> float:
            seen.append((instance.num_running, instance.num_waiting_tokens, instance.num_tokens))
            assert (instance.telemetry is None) == (len(seen) < 3)
            return 0.0

    policy = Looking()
    policy.handle(up("a", 8), 0.0)
    policy.handle(submitted("one/0", num_prompt_tokens=100), 0.0)
    policy.handle(submitted("two/0", num_chars=80), 0.0)
    policy.handle(FirstToken("one/0"), 0.5)
    policy.handle(Progressed("one/0", 7), 0.6)
    policy.handle(Telemetry("a", POOL, 2, 0, 0.1), 0.7)
    policy.handle(submitted("three/0"), 1.0)
    assert seen == [(0, 0, 0), (1, 100, 100), (2, 20, 127)]


def test_classes_of_the_settings_give_their_tiers() -> None:
    policy = LeastOutstanding(classes={"bulk": SloClass(tier=2), "chat": SloClass(tier=0)})
    policy.handle(up("a", 1), 0.0)
    policy.handle(submitted("first/0"), 0.0)
    policy.handle(submitted("bulk/0", slo_class="bulk"), 0.0)
    policy.handle(submitted("chat/0", slo_class="chat"), 0.0)
    assert dispatches(policy.handle(Finished("first/0"), 1.0)) == [("chat/0", "a")]


def test_a_policy_needs_a_score() -> None:
    with pytest.raises(TypeError, match="score"):
        PlacementPolicy()  # type: ignore[abstract]


def test_an_empty_timer_is_never_asked_for() -> None:
    policy = LeastOutstanding()
    policy.handle(up("a", 0), 0.0)
    assert policy.handle(submitted("r/0", deadline=float("inf")), 0.0) == []
    assert policy.handle(submitted("r/1", deadline=9.0), 0.0) == [SetTimer(9.0)]
    assert policy.handle(submitted("r/2", deadline=10.0), 0.0) == [], "it is set already"
    assert policy.handle(submitted("r/3", deadline=8.0), 0.0) == [SetTimer(8.0)]


def test_a_long_run_leaves_nothing_behind() -> None:
    policy = LeastOutstanding(max_queued=50)
    driver = Driver(policy, max_queued=50)
    for name in "ab":
        driver.give(up(name, 3))
    for number in range(2000):
        driver.at(number * 0.01, submitted(f"{number}/0", number * 0.01 + 0.2))
        if number % 3 == 0 and driver.running:
            driver.give(Finished(next(iter(driver.running)), 5))
    driver.pass_until(100.0)
    driver.finish_all()
    (pool,) = policy._pools.values()
    assert (policy._where, pool.queued, pool.deadlines, pool._placed, len(pool._order)) == ({}, {}, [], {}, 0)


def test_instances_are_told_apart_by_pool() -> None:
    policy = LeastOutstanding()
    events: list[Event] = [up("a", 1), up("a", 1, pool="other"), InstanceUp(up("b", 1).instance)]
    for event in events:
        policy.handle(event, 0.0)
    assert dispatches(policy.handle(submitted("r/0", pool="other"), 0.0)) == [("r/0", "a")]
    assert sheds(policy.handle(InstanceDown("a", POOL, is_lost=True), 0.0)) == []
