"""Batches that the scheduler formed run as they were formed: together, apart from others, and not for ever late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_worker import BatchLoop, FormedBatch
from sage_worker.batch_loop import FORMED_PATIENCE
from sage_worker.batch_queue import BatchLimits
from sage_worker.device import device_name, is_gpu
from sage_worker.formed_batches import FormedBatches

LIMITS = BatchLimits(max_items=4, max_padded=64)
PATIENCE = 0.02
FIRST, SECOND = FormedBatch(1, 1, 2), FormedBatch(1, 2, 1)


def formed() -> FormedBatches[str]:
    return FormedBatches(LIMITS, patience=PATIENCE)


def items(batch: list) -> list[str]:
    return [entry.item for entry in batch]


def test_a_batch_waits_for_its_last_member_and_then_runs_alone() -> None:
    batches = formed()
    batches.add(FIRST, 0, ["a", "c"], [1, 3], 0.0)
    batches.add(SECOND, 9, ["x"], [2], 0.0)
    assert items(batches.take(0.0)) == ["x"], "a whole batch does not wait for one that is not"
    assert batches.take(0.01) == []
    assert batches.next_due == PATIENCE
    batches.add(FIRST, 1, ["b"], [2], 0.01)
    assert items(batches.take(0.01)) == ["a", "b", "c"]
    assert (len(batches), batches.next_due) == (0, None)


def test_a_batch_runs_with_what_is_there_when_its_patience_is_over() -> None:
    batches = formed()
    batches.add(FIRST, 0, ["a"], [1], 0.0)
    assert batches.take(PATIENCE - 0.001) == []
    assert items(batches.take(PATIENCE)) == ["a"]
    batches.add(FIRST, 1, ["late"], [1], 0.03)
    batches.add(FIRST, 2, ["later"], [1], 0.04)
    assert items(batches.take(0.04)) == ["late", "later"], (
        "who comes later does not wait again, nor runs alone"
    )


def test_batches_of_different_leaders_never_meet() -> None:
    batches = formed()
    batches.add(FormedBatch(1, 1, 2), 0, ["old"], [1], 0.0)
    batches.add(FormedBatch(2, 1, 2), 1, ["new"], [1], 0.0)
    assert batches.take(0.0) == []


@given(
    st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 40), min_size=1, max_size=6)), max_size=8),
    st.sets(st.integers(0, 7), max_size=3),
)
def test_every_item_is_taken_once_within_the_limits_and_never_mixed(
    members: list[tuple[int, list[int]]], discarded: set[int]
) -> None:
    sizes = {number: sum(1 for other, _ in members if other == number) for number, _ in members}
    batches: FormedBatches[tuple[int, int]] = FormedBatches(LIMITS, patience=PATIENCE)
    for ticket, (number, lengths) in enumerate(members):
        batch = FormedBatch(1, number, sizes[number])
        batches.add(batch, ticket, [(number, ticket)] * len(lengths), lengths, 0.0)
    for ticket in discarded:
        batches.discard(ticket)
    expected = sum(len(lengths) for ticket, (_, lengths) in enumerate(members) if ticket not in discarded)
    assert len(batches) == expected
    num_taken = 0
    while taken := batches.take(0.0):
        assert len({entry.item[0] for entry in taken}) == 1
        assert not {entry.ticket for entry in taken} & discarded
        assert len(taken) <= LIMITS.max_items
        assert len(taken) == 1 or len(taken) * taken[-1].length <= LIMITS.max_padded
        num_taken += len(taken)
    assert num_taken == expected


class Model:
    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def run(self, texts: list[str]) -> list[str]:
        self.batches.append(texts)
        return [text.upper() for text in texts]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def loop(model: Model) -> AsyncIterator[BatchLoop[str, str]]:
    batches: BatchLoop[str, str] = BatchLoop(model.run, length=len, max_queued=100, name="model")
    await batches.start()
    yield batches
    await batches.stop()


async def test_members_are_computed_as_one_batch_though_others_wait(
    loop: BatchLoop[str, str], model: Model
) -> None:
    batch = FormedBatch(1, 1, 3)
    members = [asyncio.create_task(loop.submit([f"m{index}"], batch=batch)) for index in range(2)]
    await asyncio.sleep(0)
    loose = asyncio.create_task(loop.submit(["loose"]))
    await loose
    members.append(asyncio.create_task(loop.submit(["m2"], batch=batch)))
    assert await asyncio.gather(*members) == [["M0"], ["M1"], ["M2"]]
    assert [sorted(texts) for texts in model.batches] == [["loose"], ["m0", "m1", "m2"]]


async def test_a_member_that_never_comes_costs_the_others_the_patience_and_no_more(
    loop: BatchLoop[str, str], model: Model
) -> None:
    started = asyncio.get_running_loop().time()
    assert await loop.submit(["a"], batch=FormedBatch(1, 1, 2)) == ["A"]
    assert FORMED_PATIENCE * 0.9 <= asyncio.get_running_loop().time() - started < FORMED_PATIENCE + 0.5


async def test_formed_and_loose_work_take_turns(loop: BatchLoop[str, str], model: Model) -> None:
    tasks = [
        asyncio.create_task(loop.submit([f"f{number}"], batch=FormedBatch(1, number, 1)))
        for number in range(1, 4)
    ]
    tasks.append(asyncio.create_task(loop.submit(["loose"])))
    await asyncio.gather(*tasks)
    assert model.batches.index(["loose"]) <= 2


def test_a_gpu_is_named_as_the_host_counts_it() -> None:
    assert device_name("cpu", {}) == "cpu"
    assert device_name("cuda", {}) == "cuda:0"
    assert device_name("cuda:1", {"CUDA_VISIBLE_DEVICES": "4, 6"}) == "cuda:6"
    assert device_name("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-7f"}) == "cuda:GPU-7f"
    assert [is_gpu(name) for name in ("cuda:0", "cpu", "")] == [True, False, False]
