"""What the hybrid policy promises beyond what every policy does: admission, order, hold, placement, learning."""

from __future__ import annotations

import resource
from itertools import pairwise
from math import inf, isfinite

import pytest
from msgspec import structs

from sage_policy import (
    Command,
    Dispatch,
    EngineProfile,
    Finished,
    FirstToken,
    InstanceDown,
    Policy,
    Shed,
    SloClass,
    Telemetry,
    Timer,
)
from unit.sage_policy.drivers import (
    HYBRID,
    POOL,
    PRO6000,
    RTX4090,
    Driver,
    dispatches,
    executor,
    make,
    sheds,
    submitted,
    up,
)

KEEPS_TARGETS = [name for name in HYBRID if name != "hybrid-admission"]


@pytest.fixture
def policy() -> Policy:
    return make("hybrid")


def shed_of(commands: list[Command]) -> Shed:
    (shed,) = [command for command in commands if isinstance(command, Shed)]
    return shed


def dispatch_of(commands: list[Command]) -> Dispatch:
    (dispatch,) = [command for command in commands if isinstance(command, Dispatch)]
    return dispatch


def busy(policy: Policy, profile: object = RTX4090, **fields: object) -> None:
    """One instance with one slot, taken."""
    policy.handle(up("a", 1, profile=profile), 0.0)
    policy.handle(submitted("running/0", 1000.0, num_prompt_tokens=100, **fields), 0.0)


# -- admission ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEEPS_TARGETS)
def test_what_even_the_best_instance_cannot_meet_is_refused_with_the_time_it_would_take(name: str) -> None:
    policy = make(name)
    policy.handle(up("a", 8, profile=RTX4090), 0.0)
    policy.handle(up("b", 8, profile=PRO6000), 0.0)
    shed = shed_of(policy.handle(submitted("r/0", num_prompt_tokens=16_000, ttft_slo=0.1), 0.0))
    assert shed.code == "overloaded"
    assert shed.decision.predicted_ttft > 0.1
    assert shed.retry_after is not None
    assert 1.0 <= shed.retry_after <= 60.0
    assert dispatches(policy.handle(submitted("r/1", num_prompt_tokens=16_000, ttft_slo=9.0), 0.0))


def test_without_admission_late_work_is_served_all_the_same() -> None:
    policy = make("hybrid-admission")
    policy.handle(up("a", 8, profile=RTX4090), 0.0)
    assert dispatches(policy.handle(submitted("r/0", num_prompt_tokens=16_000, ttft_slo=0.1), 0.0))


def test_retry_after_grows_with_what_waits() -> None:
    def retry_after(num_waiting: int) -> float:
        policy = make("hybrid")
        busy(policy)
        for number in range(num_waiting):
            policy.handle(submitted(f"{number}/0", 1000.0, num_prompt_tokens=2000, max_tokens=300), 0.0)
        shed = shed_of(policy.handle(submitted("late/0", num_prompt_tokens=16_000, ttft_slo=0.1), 0.0))
        assert shed.retry_after is not None
        return shed.retry_after

    assert retry_after(0) == 1.0
    assert retry_after(10) < retry_after(100) <= retry_after(1000) <= 60.0


def test_held_work_is_refused_as_soon_as_its_target_is_out_of_reach_not_before(policy: Policy) -> None:
    busy(policy)
    waits = policy.handle(submitted("r/0", 1000.0, num_prompt_tokens=100, ttft_slo=2.0), 0.0)
    assert (sheds(waits), dispatches(waits)) == ([], [])
    assert sheds(policy.handle(submitted("other/0", 1000.0), 1.0)) == []
    assert ("r/0", "overloaded") in sheds(policy.handle(Finished("running/0", 5), 3.0))


def test_work_that_may_not_be_shed_is_served_however_late() -> None:
    policy = make("hybrid", classes={"keep": SloClass(ttft=0.1, may_shed=False)})
    policy.handle(up("a", 8, profile=RTX4090), 0.0)
    assert dispatches(policy.handle(submitted("r/0", slo_class="keep", num_prompt_tokens=16_000), 0.0)) == [
        ("r/0", "a")
    ]


def test_late_work_that_may_not_be_shed_lets_work_pass_that_is_still_in_time() -> None:
    policy = make("hybrid", classes={"keep": SloClass(ttft=0.5, may_shed=False), "chat": SloClass(ttft=60.0)})
    busy(policy, slo_class="chat")
    policy.handle(submitted("late/0", 1000.0, slo_class="keep", num_prompt_tokens=100), 0.0)
    policy.handle(submitted("chat/0", 1000.0, slo_class="chat", num_prompt_tokens=100), 1.0)
    assert dispatches(policy.handle(Finished("running/0", 5), 2.0)) == [("chat/0", "a")]
    assert dispatches(policy.handle(Finished("chat/0", 5), 3.0)) == [("late/0", "a")]


def test_the_clock_of_a_target_is_that_of_the_pipeline_run(policy: Policy) -> None:
    policy.handle(up("a", 8, profile=RTX4090), 0.0)
    fields = {"num_prompt_tokens": 2000, "ttft_slo": 5.0}
    assert dispatches(policy.handle(submitted("young/0", 100.0, started_ago=1.0, **fields), 10.0))
    assert sheds(policy.handle(submitted("old/0", 100.0, started_ago=4.95, **fields), 10.0)) == [
        ("old/0", "overloaded")
    ]


# -- order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in HYBRID if name != "hybrid-fair"])
def test_the_tightest_target_goes_first(name: str) -> None:
    policy = make(name)
    busy(policy)
    for key, ttft in (("late/0", 30.0), ("soon/0", 10.0), ("later/0", 50.0)):
        policy.handle(submitted(key, 1000.0, num_prompt_tokens=100, ttft_slo=ttft), 0.0)
    policy.handle(Finished("running/0", 5), 1.0)
    policy.handle(Finished("soon/0", 5), 2.0)
    assert dispatches(policy.handle(Finished("late/0", 5), 3.0)) == [("later/0", "a")]


@pytest.mark.parametrize("is_batched", [False, True])
def test_a_stage_with_more_work_behind_it_goes_before_one_with_the_same_target(is_batched: bool) -> None:
    policy = make("hybrid")
    start = executor("a", max_in_flight=1) if is_batched else up("a", 1, profile=RTX4090)
    policy.handle(start, 0.0)
    policy.handle(submitted("running/0", 1000.0, num_prompt_tokens=100), 0.0)
    policy.handle(submitted("last/0", 1000.0, num_prompt_tokens=100, ttft_slo=20.0), 0.0)
    policy.handle(
        submitted("first/0", 1000.0, num_prompt_tokens=100, ttft_slo=20.0, downstream_seconds=15.0), 0.0
    )
    assert dispatches(policy.handle(Finished("running/0", 5), 1.0)) == [("first/0", "a")]


@pytest.mark.parametrize("name", [*(name for name in HYBRID if name != "hybrid-fair"), "vtc", "vtc+hold"])
def test_two_backlogged_tenants_get_equal_shares_of_the_served_cost(name: str) -> None:
    """Jain index of served tokens >= 0.98, although one tenant's requests are five times as large."""
    driver = Driver(make(name, max_queued=10_000))
    for instance in "ab":
        driver.give(up(instance, 8, profile=RTX4090))
    sizes = {"small": (400, 40), "large": (2000, 200)}
    served = dict.fromkeys(sizes, 0.0)
    owner: dict[str, str] = {}

    def submit(tenant: str) -> None:
        num_prompt, num_output = sizes[tenant]
        key = f"{tenant}{len(owner)}/0"
        owner[key] = tenant
        request = submitted(
            key, 1e6, tenant=tenant, route=tenant, num_prompt_tokens=num_prompt, max_tokens=num_output
        )
        driver.give(request)

    for _ in range(30):
        submit("small")
        submit("large")
    for number in range(1200):
        driver.pass_until(driver.now + 0.05)
        key = next(iter(driver.running))
        tenant = owner[key]
        driver.give(FirstToken(key))
        driver.give(Finished(key, sizes[tenant][1]))
        submit(tenant)
        if number >= 100:  # lengths are learned by then
            served[tenant] += sum(sizes[tenant])
    jain = sum(served.values()) ** 2 / (2 * sum(value**2 for value in served.values()))
    assert jain >= 0.98, served


# -- hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*(n for n in HYBRID if n != "hybrid-hold"), "least-outstanding+hold", "lmetric+hold"]
)
def test_no_more_is_sent_than_fits_the_memory_of_the_engine(name: str) -> None:
    policy = make(name)
    policy.handle(up("a", 64, profile=structs.replace(RTX4090, kv_tokens=10_000)), 0.0)
    placed: list[tuple[str, str]] = []
    for number in range(10):
        event = submitted(f"{number}/0", 1000.0, num_prompt_tokens=3000, max_tokens=100)
        placed += dispatches(policy.handle(event, number * 0.2))
        placed += dispatches(policy.handle(FirstToken(f"{number}/0"), number * 0.2 + 0.1))
    assert 1 <= len(placed) <= 3
    assert dispatches(policy.handle(Finished(placed[0][0], 100), 2.0)), "and the next once there is room"


def test_without_hold_everything_is_sent_on_arrival() -> None:
    policy = make("hybrid-hold")
    policy.handle(up("a", 64, profile=structs.replace(RTX4090, kv_tokens=10_000)), 0.0)
    for number in range(10):
        event = submitted(f"{number}/0", 1000.0, num_prompt_tokens=3000, max_tokens=100)
        assert dispatches(policy.handle(event, 0.0))


@pytest.mark.parametrize("name", ["hybrid", "hybrid-placement", "least-outstanding+hold", "dynamo-cost+hold"])
def test_prompts_do_not_pile_up_in_an_engine(name: str) -> None:
    policy = make(name)
    policy.handle(up("a", 64, profile=structs.replace(RTX4090, kv_tokens=10**6)), 0.0)
    sent = 0
    for number in range(40):
        event = submitted(f"{number}/0", 1000.0, num_prompt_tokens=4000, max_tokens=10)
        sent += 4000 * len(dispatches(policy.handle(event, 0.0)))
    assert 4000 <= sent <= 16_000


def test_sequences_of_other_clients_take_room_while_telemetry_tells_of_them(policy: Policy) -> None:
    policy.handle(up("a", 64, profile=structs.replace(RTX4090, max_sequences=4)), 0.0)
    assert dispatches(policy.handle(submitted("0/0", 1000.0, num_prompt_tokens=100), 0.0))
    policy.handle(FirstToken("0/0"), 0.2)
    policy.handle(Telemetry("a", POOL, num_running=4, num_waiting=0, kv_used=0.1), 0.3)
    assert dispatches(policy.handle(submitted("1/0", 1000.0, num_prompt_tokens=100), 0.4)) == []
    assert dispatches(policy.handle(submitted("2/0", 1000.0, num_prompt_tokens=100), 20.0)), (
        "that was long ago"
    )


def test_an_idle_engine_takes_any_prompt_that_fits_its_context(policy: Policy) -> None:
    policy.handle(up("a", 64, profile=RTX4090), 0.0)
    assert dispatches(policy.handle(submitted("r/0", num_prompt_tokens=32_000), 0.0)) == [("r/0", "a")]


# -- placement ---------------------------------------------------------------------------------------------

CACHED = [*(name for name in HYBRID if name != "hybrid-placement"), "cache-aware", "dynamo-cost", "lmetric"]


@pytest.mark.parametrize("name", CACHED)
@pytest.mark.parametrize("seed", range(4))
def test_a_conversation_goes_on_where_its_prefix_is_cached(name: str, seed: int) -> None:
    policy = make(name, seed=seed)
    for instance in "abc":
        policy.handle(up(instance, 64, profile=RTX4090), 0.0)
    blocks = tuple(range(100, 108))
    fields = {"num_prompt_tokens": 4200, "ttft_slo": 5.0, "tpot_slo": 0.05}
    home = dispatch_of(policy.handle(submitted("first/0", blocks=blocks[:7], **fields), 0.0)).instance_id
    policy.handle(FirstToken("first/0"), 0.5)
    policy.handle(Finished("first/0", 50), 3.0)
    follows = dispatch_of(policy.handle(submitted("second/0", blocks=blocks, **fields), 10.0))
    assert follows.instance_id == home


@pytest.mark.parametrize("name", [name for name in CACHED if name.startswith("hybrid")])
def test_a_cached_prefix_does_not_outweigh_a_queue(name: str) -> None:
    policy = make(name)
    for instance in "ab":
        policy.handle(up(instance, 64, profile=structs.replace(RTX4090, kv_tokens=10**6)), 0.0)
    fields = {"ttft_slo": 5.0, "tpot_slo": 0.05, "max_tokens": 50}
    first = submitted("first/0", num_prompt_tokens=1100, blocks=(1, 2), **fields)
    home = dispatch_of(policy.handle(first, 0.0)).instance_id
    policy.handle(FirstToken("first/0"), 0.5)
    policy.handle(Finished("first/0", 50), 3.0)
    other = "b" if home == "a" else "a"
    policy.handle(InstanceDown(other, POOL, is_lost=False), 3.0)
    for number in range(2):
        policy.handle(submitted(f"{number}/0", num_prompt_tokens=6000, **fields), 3.0)
    policy.handle(up(other, 64, profile=structs.replace(RTX4090, kv_tokens=10**6)), 3.0)
    second = submitted("second/0", num_prompt_tokens=1600, blocks=(1, 2, 3), **fields)
    assert dispatch_of(policy.handle(second, 3.001)).instance_id == other


@pytest.mark.parametrize("seed", range(4))
def test_mixed_hardware_is_loaded_by_its_speed(seed: int) -> None:
    def share_of_fast(name: str) -> float:
        policy = make(name, seed=seed)
        policy.handle(up("slow", 256, profile=structs.replace(RTX4090, kv_tokens=10**6)), 0.0)
        policy.handle(up("fast", 256, profile=structs.replace(PRO6000, kv_tokens=10**6)), 0.0)
        placed: list[str] = []
        for number in range(100):
            event = submitted(f"{number}/0", 1000.0, num_prompt_tokens=1500, max_tokens=100,
                              ttft_slo=4.0, tpot_slo=0.1)  # fmt: skip
            now = number * 0.06
            placed += [instance for _, instance in dispatches(policy.handle(event, now))]
            if number >= 4:
                policy.handle(FirstToken(f"{number - 4}/0"), now)
        return placed.count("fast") / len(placed)

    assert share_of_fast("hybrid") > 0.6
    assert share_of_fast("least-outstanding") == pytest.approx(0.5, abs=0.02)


def test_an_idle_fleet_gives_a_long_prompt_to_the_fastest(policy: Policy) -> None:
    for name, profile in (
        ("slow", RTX4090),
        ("fast", PRO6000),
        ("slower", structs.replace(RTX4090, m1=2e-4)),
    ):
        policy.handle(up(name, 64, profile=profile), 0.0)
    assert dispatches(policy.handle(submitted("r/0", num_prompt_tokens=8000, ttft_slo=10.0), 0.0)) == [
        ("r/0", "fast")
    ]


# -- receipts, learning, hints -----------------------------------------------------------------------------


def test_a_receipt_has_the_predictions_and_every_instance_with_what_spoke_against_it(policy: Policy) -> None:
    policy.handle(up("full", 1, ("old/0",), profile=RTX4090), 0.0)
    policy.handle(up("short", 8, profile=structs.replace(RTX4090, max_context=1000)), 0.0)
    policy.handle(up("draining", 8, ("old/1",), profile=RTX4090), 0.0)
    policy.handle(InstanceDown("draining", POOL, is_lost=False), 0.0)
    policy.handle(up("good", 8, profile=RTX4090), 0.0)
    event = submitted("r/0", num_prompt_tokens=2000, max_tokens=100, ttft_slo=5.0, tpot_slo=0.1)
    dispatch = dispatch_of(policy.handle(event, 0.0))
    assert dispatch.instance_id == "good"
    why = dispatch.decision
    assert {candidate.instance_id: candidate.reason for candidate in why.candidates} == {
        "full": "full",
        "short": "context",
        "draining": "draining",
        "good": "",
    }
    assert 0 < why.predicted_ttft < why.predicted_e2e < inf
    assert 0 < why.predicted_tpot < 0.1


def predicted_after(name: str, slowness: float) -> float:
    """Return the predicted TTFT after 60 requests that all took `slowness` times as long as the profile says."""
    policy = make(name)
    policy.handle(up("a", 64, profile=RTX4090), 0.0)
    now = 0.0
    for number in range(60):
        event = submitted(f"{number}/0", 1e6, num_prompt_tokens=2000, max_tokens=50)
        why = dispatch_of(policy.handle(event, now)).decision
        ttft = slowness * 0.18
        policy.handle(FirstToken(f"{number}/0"), now + ttft)
        now += ttft + slowness * 49 * 0.0172
        policy.handle(Finished(f"{number}/0", 50), now)
        now += 30.0
    return why.predicted_ttft


def test_predictions_follow_an_engine_that_is_slower_than_its_profile() -> None:
    assert predicted_after("hybrid", 2.0) > 1.6 * predicted_after("hybrid", 1.0)
    assert predicted_after("hybrid-learning", 2.0) == predicted_after("hybrid-learning", 1.0)


def test_hints_follow_the_work_that_arrives() -> None:
    driver = Driver(make("hybrid", scale_hint_interval=10.0, max_queued=100_000))
    driver.give(up("a", 64, profile=RTX4090))
    number = 0

    def run(seconds: float, per_second: float) -> int:
        nonlocal number
        for _ in range(int(seconds * per_second)):
            number += 1
            request = submitted(f"{number}/0", driver.now + 20.0, num_prompt_tokens=2000, max_tokens=200)
            driver.at(driver.now + 1 / per_second, request)
            driver.finish_all()
        return driver.hints[-1].num_instances

    calm, rush = run(120, 1), run(120, 40)
    assert calm == 1
    assert rush >= 3
    assert run(400, 1) < rush
    assert all(hint.pool == POOL and hint.decision.reason for hint in driver.hints)
    numbers = [hint.num_instances for hint in driver.hints]
    assert all(one != other for one, other in pairwise(numbers)), "no hint is repeated"


def test_there_are_no_hints_unless_asked_for() -> None:
    driver = Driver(make("hybrid"))
    driver.give(up("a", 4, profile=RTX4090))
    for number in range(100):
        driver.at(number * 1.0, submitted(f"{number}/0", 1e6, num_prompt_tokens=2000))
    assert driver.hints == []


def test_a_backlog_that_is_late_all_at_once_is_refused_without_one_long_decision(policy: Policy) -> None:
    driver = Driver(policy)
    driver.give(up("a", 1, profile=RTX4090))
    driver.give(submitted("running/0", 1e6, num_prompt_tokens=100))
    for number in range(900):
        driver.give(submitted(f"{number}/0", 1e6, num_prompt_tokens=100, ttft_slo=30.0))
    driver.timer_at = inf  # the scheduler's process stood still
    driver.now = 40.0
    most = len(sheds(driver.give(Timer())))
    for _ in range(200):
        if not driver.waiting:
            break
        assert isfinite(driver.timer_at), "it asks to go on at once"
        most = max(most, len(sheds(driver.pass_until(driver.now + 0.001))))
    assert not driver.waiting
    assert all(shed.code == "overloaded" for shed in driver.shed.values())


def test_an_engine_that_names_no_limit_costs_no_memory_for_it() -> None:
    driver = Driver(make("hybrid"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(16):
        driver.give(up(f"w{number}", profile=EngineProfile(kv_tokens=2**31 - 1), prefix_block=128))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 64
