"""How batches of embed, rerank and operator work are formed. The driver checks their limits at every dispatch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from sage_policy import Command, Dispatch, EngineProfile, Finished, FirstToken, SetTimer
from unit.sage_policy.drivers import (
    ENCODER,
    HYBRID,
    RTX4090,
    Driver,
    dispatches,
    executor,
    make,
    sheds,
    submitted,
    up,
)

DEADLINE = [name for name in HYBRID if name not in ("hybrid-batcher", "hybrid-hold", "hybrid-fair")]
EAGER = ["fcfs", "least-outstanding+hold"]
BATCHES = [*DEADLINE, *EAGER, "hybrid-batcher", "hybrid-fair"]


def batch_of(commands: list[Command]) -> list[str]:
    found = [command for command in commands if isinstance(command, Dispatch)]
    assert len({command.batch for command in found}) <= 1
    return [command.key for command in found]


def finish(driver: Driver) -> list[Command]:
    """End the running batch; return what was commanded at its last report."""
    commands: list[Command] = []
    for key in list(driver.running):
        commands = driver.give(Finished(key))
    return commands


@pytest.mark.parametrize("name", BATCHES)
def test_an_idle_executor_with_a_lone_request_does_not_wait(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("a"))
    assert batch_of(driver.give(submitted("r/0", num_prompt_tokens=100, ttft_slo=9.0))) == ["r/0"]


@pytest.mark.parametrize("name", BATCHES)
def test_what_waits_for_a_busy_executor_leaves_in_one_batch(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("a"))
    driver.give(submitted("first/0", num_prompt_tokens=100))
    for number in range(10):
        assert dispatches(driver.give(submitted(f"{number}/0", num_prompt_tokens=100))) == []
    assert sorted(batch_of(finish(driver))) == sorted(f"{number}/0" for number in range(10))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(BATCHES),
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 900), st.sampled_from([None, 0.02, 0.5, 30.0])),
        max_size=60,
    ),
    st.integers(1, 64),
    st.integers(200, 20_000),
)
def test_batches_keep_to_the_items_and_padded_tokens_of_the_executor_and_lose_nobody(
    name: str, sizes: list[tuple[int, int, float | None]], max_sequences: int, max_step_tokens: int
) -> None:
    driver = Driver(make(name))
    profile = structs.replace(ENCODER, max_sequences=max_sequences, max_step_tokens=max_step_tokens)
    driver.give(executor("a", profile))
    for number, (num_items, tokens_per_item, ttft) in enumerate(sizes):
        driver.give(
            submitted(
                f"{number}/0",
                1e6,
                num_items=num_items,
                num_prompt_tokens=num_items * tokens_per_item,
                ttft_slo=ttft,
            )
        )
    for _ in range(len(sizes) + 1):
        driver.pass_until(driver.now + 0.01)
        finish(driver)
    assert not driver.waiting
    assert len(driver.served) + len(driver.shed) == len(sizes)


@pytest.mark.parametrize("name", DEADLINE)
def test_the_earliest_target_is_in_the_next_batch(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("a", structs.replace(ENCODER, max_sequences=4)))
    driver.give(submitted("first/0", num_prompt_tokens=100))
    for number in range(20):
        driver.give(submitted(f"{number}/0", num_prompt_tokens=100, ttft_slo=50.0))
    driver.give(submitted("urgent/0", num_prompt_tokens=700, ttft_slo=1.0))
    assert "urgent/0" in batch_of(finish(driver))


@pytest.mark.parametrize("name", DEADLINE)
def test_short_inputs_are_not_padded_to_the_length_of_long_ones(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("a"))
    driver.give(submitted("first/0", num_prompt_tokens=100))
    for number in range(8):
        driver.give(submitted(f"short{number}/0", num_prompt_tokens=20, ttft_slo=20.0 + number))
        driver.give(submitted(f"long{number}/0", num_prompt_tokens=500, ttft_slo=30.0 + number))
    batch = batch_of(finish(driver))
    assert len(batch) == 8
    assert all(key.startswith("short") for key in batch)


@pytest.mark.parametrize("name", DEADLINE)
def test_a_batch_does_not_grow_past_the_target_of_its_most_urgent_member(name: str) -> None:
    profile = EngineProfile(m0=0.01, m1=1e-4, max_sequences=64, max_step_tokens=100_000)
    driver = Driver(make(name))
    driver.give(executor("a", profile))
    driver.give(submitted("first/0", num_prompt_tokens=100))
    driver.give(submitted("urgent/0", num_prompt_tokens=500, ttft_slo=0.2))
    for number in range(20):
        driver.give(submitted(f"{number}/0", num_prompt_tokens=500, ttft_slo=50.0))
    batch = batch_of(finish(driver))
    assert "urgent/0" in batch
    assert profile.m0 + profile.m1 * 500 * len(batch) <= 0.2


@pytest.mark.parametrize("name", DEADLINE)
def test_a_batch_stops_growing_where_the_executor_gains_nothing(name: str) -> None:
    """No fixed cost per batch: a second member only makes the first one wait."""
    profile = EngineProfile(m0=1e-6, m1=1e-4, max_sequences=64, max_step_tokens=100_000)
    driver = Driver(make(name))
    driver.give(executor("a", profile))
    driver.give(submitted("first/0", num_prompt_tokens=500))
    for number in range(20):
        driver.give(submitted(f"{number}/0", num_prompt_tokens=500, ttft_slo=50.0))
    assert len(batch_of(finish(driver))) <= 2


@pytest.mark.parametrize("name", ["least-outstanding+window5", "least-outstanding+window10"])
def test_a_fixed_window_opens_with_the_first_arrival_and_takes_what_came_meanwhile(name: str) -> None:
    window = 0.005 if name.endswith("5") else 0.010
    driver = Driver(make(name))
    driver.give(executor("a"))
    assert driver.give(submitted("0/0", num_prompt_tokens=100)) == [SetTimer(window)]
    assert dispatches(driver.at(window * 0.9, submitted("1/0", num_prompt_tokens=100))) == []
    assert batch_of(driver.pass_until(window)) == ["0/0", "1/0"]


def test_a_full_window_does_not_wait_for_its_end() -> None:
    driver = Driver(make("least-outstanding+window10"))
    driver.give(executor("a"))
    commands: list[Command] = []
    for number in range(32):
        assert dispatches(commands) == []
        commands = driver.give(submitted(f"{number}/0", num_prompt_tokens=10))
    assert len(batch_of(commands)) == 32


@pytest.mark.parametrize("name", EAGER)
def test_an_eager_batch_takes_what_waits_in_order_of_arrival(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("a", structs.replace(ENCODER, max_sequences=3)))
    driver.give(submitted("first/0", num_prompt_tokens=100))
    for number in range(5):
        driver.give(submitted(f"{number}/0", num_prompt_tokens=500 - 90 * number, ttft_slo=50.0 - number))
    assert batch_of(finish(driver)) == ["0/0", "1/0", "2/0"]


@pytest.mark.parametrize("name", ["round-robin", "least-outstanding", "random", "hybrid-hold"])
def test_pushed_work_goes_to_the_executors_own_queue_at_once(name: str) -> None:
    driver = Driver(make(name))
    for instance in "ab":
        driver.give(executor(instance))
    for number in range(40):
        (dispatch,) = driver.give(submitted(f"{number}/0", num_prompt_tokens=100))
        assert isinstance(dispatch, Dispatch)
        assert dispatch.batch == 0
    loads = [len(worker.running) for worker in driver.workers.values()]
    assert sum(loads) == 40
    assert min(loads) >= (1 if name == "random" else 20)


SLOW = structs.replace(ENCODER, m0=0.2, m1=1e-3)
"""A CPU beside a GPU."""


@pytest.mark.parametrize("name", DEADLINE)
def test_a_slow_executor_takes_only_what_a_fast_one_would_not_finish_sooner(name: str) -> None:
    driver = Driver(make(name, max_queued=10_000))
    driver.give(executor("gpu"))
    driver.give(executor("cpu", SLOW, is_gpu=False))
    assert dispatches(driver.give(submitted("first/0", num_prompt_tokens=100, ttft_slo=9.0))) == [
        ("first/0", "gpu")
    ]
    second = driver.give(submitted("second/0", num_prompt_tokens=100, ttft_slo=9.0))
    assert (dispatches(second), sheds(second)) == ([], []), "the GPU is sooner done with both"
    for number in range(3000):
        placed = dispatches(driver.give(submitted(f"{number}/0", num_prompt_tokens=100, ttft_slo=9.0)))
        if placed:
            assert {instance for _, instance in placed} == {"cpu"}
            return
    raise AssertionError("it idles beside a long queue")


@pytest.mark.parametrize("name", DEADLINE)
def test_an_executor_that_hangs_does_not_hold_work_back_from_the_others(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("gpu"))
    driver.give(executor("cpu", SLOW, is_gpu=False))
    driver.give(submitted("hangs/0", num_prompt_tokens=100, ttft_slo=9.0))
    driver.at(0.001, submitted("r/0", num_prompt_tokens=100, ttft_slo=2.0))
    driver.pass_until(1.5)
    assert driver.running["r/0"][1] == "cpu"


@pytest.mark.parametrize("name", DEADLINE)
def test_nobody_waits_for_a_fast_executor_without_slots(name: str) -> None:
    driver = Driver(make(name))
    driver.give(executor("gpu", max_in_flight=0))
    driver.give(executor("cpu", SLOW, is_gpu=False))
    assert dispatches(driver.give(submitted("r/0", num_prompt_tokens=100, ttft_slo=9.0))) == [("r/0", "cpu")]


@pytest.mark.parametrize("name", DEADLINE)
def test_batches_run_beside_an_llm_that_has_time_to_spare(name: str) -> None:
    driver = Driver(make(name))
    driver.give(up("llm", 8, pool="chat", device="gpu", profile=RTX4090))
    driver.give(executor("encoder", device="gpu"))
    driver.give(submitted("talk/0", pool="chat", num_prompt_tokens=100, max_tokens=500, tpot_slo=1.0))
    driver.at(0.1, FirstToken("talk/0"))
    assert batch_of(driver.at(0.2, submitted("r/0", num_prompt_tokens=1000, ttft_slo=5.0))) == ["r/0"]


@pytest.mark.parametrize("name", DEADLINE)
def test_an_llm_on_the_same_device_delays_a_batch_no_longer_than_its_target_allows(name: str) -> None:
    driver = Driver(make(name))
    driver.give(up("llm", 8, pool="chat", device="gpu", profile=RTX4090))
    driver.give(executor("encoder", structs.replace(ENCODER, m0=0.3), device="gpu"))
    for number in range(8):
        driver.give(
            submitted(f"talk{number}/0", pool="chat", num_prompt_tokens=100, max_tokens=500, tpot_slo=0.0185)
        )
    driver.now = 0.2
    for number in range(8):
        driver.give(FirstToken(f"talk{number}/0"))
    driver.at(0.3, submitted("r/0", 50.0, num_prompt_tokens=1000, ttft_slo=2.0))
    driver.pass_until(2.3)
    assert "r/0" in driver.served


def test_a_pipeline_that_cannot_be_in_time_any_more_ends_at_its_first_node() -> None:
    """Five seconds of work must follow; the target is two seconds away."""
    driver = Driver(make("hybrid"))
    driver.give(executor("a"))
    late = driver.give(submitted("late/0", ttft_slo=2.0, downstream_seconds=5.0, num_prompt_tokens=20))
    assert sheds(late) == [("late/0", "overloaded")]
    in_time = driver.give(submitted("good/0", ttft_slo=2.0, downstream_seconds=1.0, num_prompt_tokens=20))
    assert batch_of(in_time) == ["good/0"]


def test_work_that_may_not_be_shed_runs_although_it_is_late() -> None:
    driver = Driver(make("hybrid"))
    driver.give(executor("a"))
    late = submitted("late/0", slo_class="batch", ttft_slo=2.0, downstream_seconds=5.0, num_prompt_tokens=20)
    assert batch_of(driver.give(late)) == ["late/0"]
