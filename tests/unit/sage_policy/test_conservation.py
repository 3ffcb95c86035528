"""Random histories: whatever happens, in whatever order, every request leaves once and nothing waits for ever."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from sage_policy import (
    Cancelled,
    EngineProfile,
    Event,
    Finished,
    FirstToken,
    InstanceDown,
    InstanceUp,
    PoolClosed,
    Progressed,
    Started,
    Submitted,
    Telemetry,
    Timer,
)
from unit.sage_policy.drivers import (
    ENCODER,
    HYBRID,
    NATIVE,
    PRO6000,
    RTX4090,
    Driver,
    comparable,
    executor,
    make,
    submitted,
    up,
)

LLM, EMBED = "llm", "embed"
KEYS = {LLM: [f"g{i}/0" for i in range(12)], EMBED: [f"e{i}/0" for i in range(12)]}
PROFILES = {
    LLM: (RTX4090, PRO6000, EngineProfile()),
    EMBED: (ENCODER, structs.replace(ENCODER, m0=0.1), EngineProfile()),
}
TARGETS = st.one_of(st.none(), st.floats(0.01, 20))
MAX_QUEUED = 6


@st.composite
def submits(draw: st.DrawFn) -> Submitted:
    pool = draw(st.sampled_from((LLM, EMBED)))
    conversation = draw(st.integers(0, 3)) << 32
    return Submitted(
        key=draw(st.sampled_from(KEYS[pool])),
        pool=pool,
        deadline=draw(st.floats(0.5, 60) | st.just(inf)),
        num_items=draw(st.integers(1, 40)),
        max_tokens=draw(st.integers(0, 2000)),
        tenant=draw(st.sampled_from(("one", "two"))),
        slo_class=draw(st.sampled_from(("interactive", "normal", "batch"))),
        priority=draw(st.integers(-1, 1)),
        num_prompt_tokens=draw(st.integers(0, 50_000)),
        ttft_slo=draw(TARGETS),
        tpot_slo=draw(st.none() | st.floats(0.005, 0.2)),
        e2e_slo=draw(TARGETS),
        started_ago=draw(st.floats(0, 5)),
        downstream_seconds=draw(st.floats(0, 5)),
        blocks=tuple(conversation + block for block in range(draw(st.integers(0, 8)))),
    )


@st.composite
def instances(draw: st.DrawFn) -> InstanceUp:
    pool = draw(st.sampled_from((LLM, EMBED)))
    name = draw(st.sampled_from("abc"))
    listed = draw(st.lists(st.sampled_from(KEYS[pool]), max_size=3, unique=True))
    return up(
        name,
        draw(st.integers(0, 5)),
        tuple(listed),
        pool=pool,
        is_batched=pool == EMBED,
        device=draw(st.sampled_from(("gpu", name))),
        profile=draw(st.sampled_from(PROFILES[pool])),
    )


ANY_KEY = st.sampled_from(KEYS[LLM] + KEYS[EMBED])
ANY_POOL = st.sampled_from((LLM, EMBED))
EVENTS: st.SearchStrategy[Event] = st.one_of(
    submits(),
    submits(),
    instances(),
    st.builds(Cancelled, ANY_KEY),
    st.builds(Started, ANY_KEY),
    st.builds(FirstToken, ANY_KEY, st.integers(0, 5000)),
    st.builds(Progressed, ANY_KEY, st.integers(0, 100)),
    st.builds(Finished, ANY_KEY, st.integers(0, 2000)),
    st.builds(Finished, ANY_KEY, st.integers(0, 2000)),
    st.builds(InstanceDown, st.sampled_from("abc"), ANY_POOL, st.booleans()),
    st.builds(
        Telemetry, st.sampled_from("abc"), ANY_POOL, st.integers(0, 9), st.integers(0, 9), st.floats(0, 1)
    ),
    st.builds(PoolClosed, ANY_POOL),
    st.just(Timer()),
)
SCRIPTS = st.lists(st.tuples(st.sampled_from((0.0, 0.001, 0.03, 0.4, 5.0)), EVENTS), max_size=60)
POLICIES = st.sampled_from((*NATIVE, *HYBRID, *HYBRID, "python", "python"))


def play(driver: Driver, script: list[tuple[float, Event]]) -> None:
    for step, event in script:
        if isinstance(event, Submitted):
            event = replace(event, deadline=driver.now + step + event.deadline)
        if isinstance(event, InstanceUp):
            # A worker lists what it runs; another pool's or instance's work it cannot run.
            here = (event.instance.pool, event.instance.instance_id)
            listed = tuple(k for k in event.instance.in_flight if driver.running.get(k, here) == here)
            event = InstanceUp(replace(event.instance, in_flight=listed))
        driver.at(driver.now + step, event)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(POLICIES, SCRIPTS, st.integers(0, 3))
def test_every_request_leaves_exactly_once_and_limits_hold(
    name: str, script: list[tuple[float, Event]], seed: int
) -> None:
    """Submitted = queued + running + shed + finished: the driver checks it at every command."""
    driver = Driver(make(name, max_queued=MAX_QUEUED, seed=seed), max_queued=MAX_QUEUED)
    play(driver, script)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(POLICIES, SCRIPTS, st.integers(0, 3))
def test_the_same_events_give_the_same_commands(
    name: str, script: list[tuple[float, Event]], seed: int
) -> None:
    class Recorded:
        name = "recorded"

        def __init__(self) -> None:
            self.inner = make(name, max_queued=MAX_QUEUED, seed=seed)
            self.log: list[str] = []

        def handle(self, event: Event, now: float) -> list:  # type: ignore[type-arg]
            commands = self.inner.handle(event, now)
            self.log.append(comparable(commands))
            return commands

    one, other = Recorded(), Recorded()
    play(Driver(one), script)
    play(Driver(other), script)
    assert one.log == other.log


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(POLICIES, SCRIPTS, st.integers(0, 3))
def test_nothing_waits_for_ever(name: str, script: list[tuple[float, Event]], seed: int) -> None:
    """Once there is an instance with room and requests end, the queue empties within a minute or two."""
    driver = Driver(make(name, max_queued=MAX_QUEUED, seed=seed))
    play(driver, script)
    driver.give(up("last", 64, pool=LLM, profile=PRO6000))
    driver.give(executor("last", pool=EMBED))
    for _ in range(120):
        driver.pass_until(driver.now + 1.0)
        driver.finish_all(random.Random(seed))
        if not driver.waiting:
            return
    raise AssertionError(f"{sorted(driver.waiting)} still wait after two minutes")


BOUNDED = [name for name in NATIVE if not name.startswith("sjf")]
"""Shortest first starves long work by its nature; it is here to compare with."""


@pytest.mark.parametrize("name", [*BOUNDED, "python"])
@pytest.mark.parametrize("tier", ["normal", "batch"])
def test_lower_tiers_are_served_while_urgent_work_never_ends(name: str, tier: str) -> None:
    driver = Driver(make(name))
    driver.give(up("a", 4, profile=RTX4090))
    driver.give(submitted("low/0", deadline=1000.0, slo_class=tier, num_prompt_tokens=500, max_tokens=200))
    number = 0
    for _ in range(400):
        while len(driver.waiting) < 8:
            number += 1
            request = submitted(
                f"urgent{number}/0", driver.now + 100.0, num_prompt_tokens=500, max_tokens=200
            )
            driver.give(request)
        if "low/0" in driver.served:
            return
        driver.pass_until(driver.now + 0.2)
        oldest = next(iter(driver.running))
        driver.give(FirstToken(oldest))
        driver.give(Finished(oldest, 200))
    raise AssertionError(f"{tier} work has waited for {driver.now:.0f} s behind {number} urgent requests")


@pytest.mark.parametrize("name", [*BOUNDED, "python"])
def test_a_tenant_with_one_request_is_served_while_another_floods_the_queue(name: str) -> None:
    driver = Driver(make(name))
    driver.give(up("a", 4, profile=RTX4090))
    for number in range(40):
        driver.give(
            submitted(f"flood{number}/0", 1000.0, tenant="flood", num_prompt_tokens=500, max_tokens=200)
        )
    driver.give(submitted("single/0", 1000.0, tenant="single", num_prompt_tokens=500, max_tokens=200))
    for number in range(40, 100):
        driver.pass_until(driver.now + 0.2)
        oldest = next(iter(driver.running))
        driver.give(FirstToken(oldest))
        driver.give(Finished(oldest, 200))
        driver.give(
            submitted(f"flood{number}/0", 1000.0, tenant="flood", num_prompt_tokens=500, max_tokens=200)
        )
    assert "single/0" in driver.served


@pytest.mark.parametrize("name", [*HYBRID, "fcfs", "vtc"])
def test_long_work_without_any_target_is_not_starved_by_short_work(name: str) -> None:
    driver = Driver(make(name))
    driver.give(up("a", 1, profile=RTX4090))
    number = 0
    for _ in range(4000):
        while len(driver.waiting) < 4:
            number += 1
            driver.give(submitted(f"short{number}/0", inf, num_prompt_tokens=50, max_tokens=20))
        if driver.now == 5.0:
            driver.give(submitted("long/0", inf, num_prompt_tokens=5000, max_tokens=2000))
        if "long/0" in driver.served:
            return
        driver.pass_until(driver.now + 0.5)
        oldest = next(iter(driver.running))
        driver.give(FirstToken(oldest))
        driver.give(Finished(oldest, 20))
    raise AssertionError(f"it has waited for {driver.now:.0f} s behind {number} short ones")


@pytest.mark.parametrize("name", [*HYBRID, "least-outstanding+hold", "lmetric+hold+shed", "edf"])
def test_a_prompt_that_needs_most_of_the_memory_is_not_starved_by_small_ones(name: str) -> None:
    driver = Driver(make(name))
    driver.give(up("a", 64, profile=structs.replace(RTX4090, kv_tokens=20_000)))
    number = 0

    def small() -> None:
        nonlocal number
        number += 1
        driver.give(submitted(f"small{number}/0", driver.now + 300.0, num_prompt_tokens=1000, max_tokens=100))

    for _ in range(20):
        small()
    driver.give(submitted("large/0", 300.0, num_prompt_tokens=16_000, max_tokens=100))
    while driver.now < 240.0:
        if "large/0" in driver.served:
            return
        driver.pass_until(driver.now + 0.25)
        small()
        oldest = next(iter(driver.running))
        driver.give(FirstToken(oldest))
        driver.give(Finished(oldest, 100))
    raise AssertionError(f"it has waited for {driver.now:.0f} s behind {number} small ones")
