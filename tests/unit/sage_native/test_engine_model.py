"""The native engine model against a slow twin, and what it promises in any case."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_native import EngineModel
from unit.sage_native.engine_twin import EngineTwin

# Powers of two: sums have the same bits in any order.
COST = {
    "a0": 2.0**-6,
    "a1": 2.0**-14,
    "a2": 2.0**-22,
    "m0": 2.0**-7,
    "m1": 2.0**-13,
    "m2": 2.0**-21,
    "m3": 2.0**-30,
    "m4": 2.0**-16,
    "host": 2.0**-10,
}


@dataclass(frozen=True)
class Request:
    num_prompt: int
    num_generated: int
    num_output: int
    priority: int
    blocks: list[int]
    prefix_block: int


@dataclass(frozen=True)
class Scenario:
    """What is submitted and removed before each step."""

    limits: dict[str, Any]
    submits: list[list[Request]] = field(default_factory=list)
    removes: list[list[int]] = field(default_factory=list)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    block_tokens = draw(st.sampled_from([1, 2, 4, 16]))
    num_blocks = draw(st.integers(6, 60))
    max_sequences = draw(st.integers(1, 8))
    limits = {
        "max_sequences": max_sequences,
        "max_step_tokens": draw(st.integers(max_sequences, 64)),
        "kv_tokens": num_blocks * block_tokens,
        "block_tokens": block_tokens,
        "watermark": draw(st.sampled_from([0.0, 0.05, 0.3])),
        "async_scheduling": draw(st.booleans()),
    }
    longest = (num_blocks - 1) * block_tokens
    prefix_block = block_tokens * draw(st.integers(1, 4))
    has_priorities = draw(st.booleans())
    submits = []
    for _ in range(draw(st.integers(1, 12))):
        arrivals = []
        for _ in range(draw(st.integers(0, 3))):
            num_prompt = draw(st.integers(1, longest - 1))
            num_generated = draw(st.just(0) | st.integers(0, min(8, longest - num_prompt - 1)))
            num_output = draw(st.integers(num_generated + 1, min(num_generated + 40, longest - num_prompt)))
            # Chained hashes: a group's name tells which root it hangs from and how far down; the last one may be short.
            root, num_full = draw(st.integers(0, 2)), num_prompt // prefix_block
            num_groups = draw(st.just(0) | st.integers(0, -(-num_prompt // prefix_block)))
            blocks = [1000 * root + depth for depth in range(min(num_groups, num_full))]
            if num_groups > num_full:
                blocks.append(1_000_000 * num_prompt + 1000 * root + num_full)
            arrivals.append(
                Request(
                    num_prompt,
                    num_generated,
                    num_output,
                    draw(st.integers(-1, 1)) if has_priorities else 0,
                    blocks,
                    prefix_block,
                )
            )
        submits.append(arrivals)
    num_requests = sum(map(len, submits))
    removes = [draw(st.lists(st.integers(0, max(0, num_requests - 1)), max_size=1)) for _ in submits]
    return Scenario(limits, submits, removes if draw(st.booleans()) else [[] for _ in submits])


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_every_step_is_that_of_the_twin(scenario: Scenario) -> None:
    engine, twin = EngineModel(**COST, **scenario.limits), EngineTwin(**COST, **scenario.limits)
    num_submitted = 0
    for _ in range(3000):
        if scenario.submits:
            for request in scenario.submits.pop(0):
                arguments = (
                    num_submitted,
                    request.num_prompt,
                    request.num_generated,
                    request.priority,
                    request.blocks,
                    request.prefix_block,
                    request.num_output,
                )
                engine.submit(*arguments)
                twin.submit(*arguments)
                num_submitted += 1
            for number in scenario.removes.pop(0):
                engine.remove(number)
                twin.remove(number)
        assert engine.is_idle == twin.is_idle
        if twin.is_idle and not scenario.submits:
            break
        seconds, emitting = twin.step()
        assert engine.step() == (seconds, emitting)
        assert (engine.num_running, engine.num_waiting) == (twin.num_running, len(twin.waiting))
        assert engine.num_preemptions == twin.num_preemptions
        assert round(engine.kv_used * twin.pool.num_blocks) == twin.pool.num_blocks - twin.pool.num_free
        for sequence in twin.running:
            assert engine.num_cached(sequence.request) == sequence.num_cached
        engine.check()
    assert engine.is_idle


def engine(**limits: Any) -> EngineModel:
    return EngineModel(**(COST | {"async_scheduling": False, "watermark": 0.0} | limits))


def run(model: EngineModel, num_steps: int = 1000) -> list[list[int]]:
    """Step until idle; return who had a token after each step."""
    emitted = []
    while not model.is_idle and len(emitted) < num_steps:
        emitted.append(model.step()[1])
        model.check()
    return emitted


def test_a_step_takes_what_the_formula_says() -> None:
    model = engine(max_step_tokens=256)
    model.submit(1, 300, num_output=2)
    prefill = COST["host"] + COST["m0"] + COST["m1"] * 256 + COST["m3"] * 256 * 128
    assert model.step() == (prefill, [])
    rest = COST["host"] + COST["m0"] + COST["m1"] * 44 + COST["m2"] * 256 + COST["m3"] * 44 * (256 + 22)
    assert model.step() == (rest, [1])
    assert model.step() == (COST["host"] + COST["a0"] + COST["a1"] + COST["a2"] * 300, [1])
    assert model.is_idle
    assert model.step() == (0.0, [])


def test_an_engine_that_plans_ahead_computes_what_arrives_during_a_step_after_the_next() -> None:
    for is_ahead, expected in ((False, [[1], [1, 2]]), (True, [[1], [1], [1, 2]])):
        model = engine(async_scheduling=is_ahead)
        model.submit(1, 10)
        emitted = [model.step()[1]]
        model.submit(2, 10)
        emitted += [model.step()[1] for _ in expected[1:]]
        assert emitted == expected


def test_nobody_overtakes_a_head_that_does_not_fit() -> None:
    model = engine(kv_tokens=16 * 21)
    model.submit(1, 160, num_output=3)
    model.submit(2, 300, num_output=1)
    model.submit(3, 20, num_output=1)
    assert run(model) == [[1], [1], [1], [2], [3]]


def test_higher_priority_is_admitted_first_and_thrown_out_last() -> None:
    model = engine(kv_tokens=16 * 5, max_sequences=2)
    model.submit(1, 15, priority=1, num_output=30)
    model.submit(2, 15, num_output=30)
    model.submit(3, 15, priority=2, num_output=2)
    emitted = run(model)
    assert emitted[:3] == [[3, 1], [3, 1], [1, 2]]
    assert model.num_preemptions == 1
    assert emitted[25:30] == [[1]] * 5  # until the other one is through
    assert emitted[-1] == [2]


def test_the_watermark_keeps_blocks_free_unless_the_engine_is_empty() -> None:
    model = engine(kv_tokens=16 * 11, watermark=0.3)
    model.submit(1, 90, num_output=2)  # six of ten blocks: fits an empty engine
    model.submit(2, 10, num_output=1)  # one block, which leaves the three that must stay free
    model.submit(3, 10, num_output=1)
    assert run(model) == [[1, 2], [1, 3]]


def test_a_preempted_request_loses_no_token() -> None:
    model = engine(kv_tokens=16 * 9, max_step_tokens=256)
    model.submit(1, 60, num_output=50)
    model.submit(2, 60, num_output=8)
    emitted = Counter(request for requests in run(model) for request in requests)
    assert model.num_preemptions == 1
    assert emitted == {1: 50, 2: 8}


def test_shared_prefixes_are_computed_once() -> None:
    model = engine(max_step_tokens=2048)
    model.submit(1, 1024, blocks=[5, 6], num_output=1)
    model.submit(2, 1024, blocks=[5, 6], num_output=1)
    model.submit(3, 1030, blocks=[5, 9], num_output=1)
    model.submit(4, 1030, blocks=[5, 6], num_output=1)
    assert model.step()[1] == [1, 2, 3, 4]
    # The last token is computed in any case, and with it its block.
    assert [model.num_cached(request) for request in (1, 2, 3, 4)] == [0, 1024 - 16, 512, 1024]


def test_a_request_without_an_end_must_be_removed_before_it_outgrows_the_cache() -> None:
    model = engine(kv_tokens=16 * 3)
    model.submit(1, 20)
    with pytest.raises(RuntimeError, match="outgrew the KV cache"):
        run(model)
    model.remove(1)
    assert model.is_idle


def test_numbers_are_unique_while_they_are_in_the_engine() -> None:
    model = engine()
    model.remove(1)
    model.submit(1, 10, num_output=1)
    with pytest.raises(ValueError, match="request 1 is already in the engine"):
        model.submit(1, 10)
    run(model)
    model.step()
    with pytest.raises(KeyError, match="request 1 is not in the engine"):
        model.num_cached(1)
    model.submit(1, 10, num_output=1)
    assert run(model) == [[1]]


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"block_tokens": 0}, "block_tokens is 0; expected at least 1"),
        ({"max_sequences": 0}, "max_sequences is 0; expected at least 1"),
        (
            {"max_sequences": 9, "max_step_tokens": 8},
            "max_step_tokens is 8; expected at least max_sequences, 9",
        ),
        ({"kv_tokens": 31}, "kv_tokens is 31; expected at least two blocks, 32"),
        ({"watermark": 1.0}, "watermark is 1.0+; expected 0 <= watermark < 1"),
    ],
)
def test_limits_that_no_engine_can_have_are_refused(limits: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        engine(**limits)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"num_prompt": 0}, "num_prompt is 0; expected at least 1"),
        ({"num_prompt": 90, "num_output": 7}, "prompt plus output is 97; expected at most 96"),
        (
            {"num_prompt": 9, "num_generated": 3, "num_output": 3},
            "num_output is 3; expected more than num_generated, 3",
        ),
        (
            {"num_prompt": 9, "blocks": [1], "prefix_block": 24},
            "prefix_block is 24; expected a multiple of block_tokens",
        ),
        (
            {"num_prompt": 40, "blocks": [1, 2], "prefix_block": 48},
            "number of blocks is 2; expected at most 1",
        ),
    ],
)
def test_a_request_that_could_never_run_is_refused(request_: dict[str, Any], complaint: str) -> None:
    model = engine(kv_tokens=16 * 7)
    with pytest.raises(ValueError, match=complaint):
        model.submit(1, **request_)
    assert model.is_idle
