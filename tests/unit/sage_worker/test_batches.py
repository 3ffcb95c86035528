"""Batches of similar length, results per caller, nothing computed for callers that have gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest, EngineError, LimitExceeded, Overloaded, Unavailable
from sage_worker import BatchLoop
from sage_worker.batch_loop import MAX_URGENT_IN_A_ROW
from sage_worker.batch_queue import BatchLimits, BatchQueue

LIMITS = BatchLimits(max_items=4, max_padded=64, free_padding=4)


@settings(max_examples=200, deadline=None)
@given(
    callers=st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=8),
    discarded=st.sets(st.integers(0, 7), max_size=3),
)
def test_every_item_is_taken_once_within_the_limits(callers: list[list[int]], discarded: set[int]) -> None:
    queue: BatchQueue[tuple[int, int]] = BatchQueue(LIMITS)
    for ticket, lengths in enumerate(callers):
        queue.add(ticket, [(ticket, index) for index in range(len(lengths))], lengths)
    for ticket in discarded:
        queue.discard(ticket)
    expected = {
        (ticket, index)
        for ticket, lengths in enumerate(callers)
        for index in range(len(lengths))
        if ticket not in discarded
    }
    assert len(queue) == len(expected)
    seen = []
    oldest = sorted(expected)
    while batch := queue.take():
        assert oldest[0] in [entry.item for entry in batch]
        assert len(batch) <= LIMITS.max_items
        longest = max(entry.length for entry in batch)
        assert len(batch) == 1 or len(batch) * longest <= LIMITS.max_padded
        assert [entry.length for entry in batch] == sorted(entry.length for entry in batch)
        seen += [entry.item for entry in batch]
        oldest = [item for item in oldest if item not in seen]
    assert sorted(seen) == sorted(expected)
    assert len(queue) == 0


def test_a_batch_is_filled_with_the_items_nearest_in_length() -> None:
    queue: BatchQueue[str] = BatchQueue(BatchLimits(max_items=3, free_padding=0, max_waste=0.5))
    queue.add(0, ["oldest", "far", "near", "nearer"], [10, 500, 14, 11])
    assert [entry.item for entry in queue.take()] == ["oldest", "nearer", "near"]
    assert [entry.item for entry in queue.take()] == ["far"]


class Model:
    """A batch function that can be held, and remembers what it saw."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.gate.set()
        self.threads: set[str] = set()

    def run(self, items: list[str]) -> list[str]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(items)
        self.entered.set()
        self.gate.wait(2)
        if "bad" in items:
            raise ValueError("bad item")
        if "refused" in items:
            raise BadRequest("refused item")
        return [item.upper() for item in items]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def loop(model: Model) -> AsyncIterator[BatchLoop[str, str]]:
    batches: BatchLoop[str, str] = BatchLoop(model.run, length=len, max_queued=100, name="model")
    await batches.start()
    yield batches
    model.gate.set()
    await batches.stop()


async def hold(loop: BatchLoop[str, str], model: Model) -> asyncio.Task[list[str]]:
    """Occupy the thread; return the task that does."""
    model.gate.clear()
    model.entered.clear()
    first = asyncio.create_task(loop.submit(["first"]))
    await asyncio.to_thread(model.entered.wait, 2)
    return first


async def test_results_come_back_in_the_callers_order(loop: BatchLoop[str, str]) -> None:
    texts = ["ccc", "a", "dddddddd", "bb"]
    assert await loop.submit(texts) == [text.upper() for text in texts]
    assert await loop.submit([]) == []


async def test_callers_share_batches_and_one_thread_runs_them(
    loop: BatchLoop[str, str], model: Model
) -> None:
    first = await hold(loop, model)
    others = [asyncio.create_task(loop.submit([f"t{index}"])) for index in range(10)]
    await asyncio.sleep(0)
    model.gate.set()
    assert await asyncio.gather(*others) == [[f"T{index}"] for index in range(10)]
    await first
    assert len(model.batches) == 2
    assert len(model.threads) == 1


async def test_items_of_a_cancelled_caller_are_dropped_before_they_count(
    loop: BatchLoop[str, str], model: Model
) -> None:
    first = await hold(loop, model)
    gone = asyncio.create_task(loop.submit(["gone"] * 5))
    stays = asyncio.create_task(loop.submit(["stays"]))
    await asyncio.sleep(0)
    assert loop.num_queued == 6
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert loop.num_queued == 1
    model.gate.set()
    assert await stays == ["STAYS"]
    await first
    assert model.batches == [["first"], ["stays"]]


async def test_the_event_loop_runs_while_a_batch_does(loop: BatchLoop[str, str], model: Model) -> None:
    first = await hold(loop, model)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.done()
    model.gate.set()
    assert await first == ["FIRST"]


async def test_one_bad_item_fails_its_own_caller_only(loop: BatchLoop[str, str], model: Model) -> None:
    first = await hold(loop, model)
    good, bad, refused = (asyncio.create_task(loop.submit([text])) for text in ("good", "bad", "refused"))
    await asyncio.sleep(0)
    model.gate.set()
    assert await good == ["GOOD"]
    with pytest.raises(EngineError, match="ValueError"):
        await bad
    with pytest.raises(BadRequest, match="refused item"):
        await refused
    await first


async def test_too_much_waiting_is_refused_at_the_door(loop: BatchLoop[str, str], model: Model) -> None:
    first = await hold(loop, model)
    waiting = asyncio.create_task(loop.submit(["x"] * 99))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as raised:
        await loop.submit(["x", "y"])
    assert raised.value.retry_after == 1.0
    with pytest.raises(LimitExceeded):
        await loop.submit(["x"] * 101)
    model.gate.set()
    await asyncio.gather(first, waiting)


async def test_stopping_fails_what_waits_and_waits_for_what_runs(model: Model) -> None:
    batches: BatchLoop[str, str] = BatchLoop(model.run, length=len)
    await batches.start()
    first = await hold(batches, model)
    waiting = asyncio.create_task(batches.submit(["x"]))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(batches.stop())
    for task in (first, waiting):
        with pytest.raises(Unavailable):
            await task
    model.gate.set()
    await stopping
    with pytest.raises(Unavailable):
        await batches.submit(["x"])


async def test_background_items_give_way_to_all_others(loop: BatchLoop[str, str], model: Model) -> None:
    first = await hold(loop, model)
    background = asyncio.create_task(loop.submit(["b1", "b2"], is_background=True))
    await asyncio.sleep(0)
    urgent = asyncio.create_task(loop.submit(["urgent"]))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, background, urgent)
    assert model.batches == [["first"], ["urgent"], ["b1", "b2"]]


async def test_background_items_get_their_turn_however_much_is_urgent(model: Model) -> None:
    limits = BatchLimits(max_items=1)
    batches: BatchLoop[str, str] = BatchLoop(model.run, length=len, limits=limits, name="model")
    await batches.start()
    first = await hold(batches, model)
    urgent = asyncio.create_task(batches.submit([f"urgent{number}" for number in range(20)]))
    background = asyncio.create_task(batches.submit(["background"], is_background=True))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, urgent, background)
    await batches.stop()
    assert model.batches.index(["background"]) <= 1 + MAX_URGENT_IN_A_ROW
