"""The queue between an engine and its reader: whom it wakes, and when."""

from __future__ import annotations

import asyncio

import pytest

from sage_core import WorkerLost
from sage_llm_worker.streams import EventStream
from sage_wire.messages import Completed, Tokens


class Reader:
    """Reads to the end, and counts how often it was woken."""

    def __init__(self, stream):
        self.batches = [[]]
        self.stream = stream
        self.task = asyncio.create_task(self.read())

    async def read(self):
        while True:
            event = await self.stream.get()
            self.batches[-1].append(event)
            if isinstance(event, Completed):
                return


async def turns(num=3):
    for _ in range(num):
        await asyncio.sleep(0)


async def test_a_reader_is_woken_for_each_event():
    stream = EventStream()
    reader = Reader(stream)
    for text in "abc":
        stream.put(Tokens(text=text))
        await turns()
        assert reader.batches[0][-1].text == text
    stream.put(Completed())
    await reader.task


async def test_one_that_gathers_is_woken_for_the_first_event_and_the_last():
    stream = EventStream(gather=60.0)
    reader = Reader(stream)
    await turns()
    stream.put(Tokens(text="a"))
    await turns()
    assert len(reader.batches[0]) == 1
    for text in "bcd":
        stream.put(Tokens(text=text))
        await turns()
    assert len(reader.batches[0]) == 1
    stream.put(Completed())
    await reader.task
    assert [event.text for event in reader.batches[0][:-1]] == ["a", "b", "c", "d"]


async def test_one_that_gathers_waits_no_longer_than_it_said():
    stream = EventStream(gather=0.01)
    reader = Reader(stream)
    await turns()
    stream.put(Tokens(text="a"))
    await turns()
    stream.put(Tokens(text="b"))
    await asyncio.sleep(0.015)
    assert len(reader.batches[0]) == 1
    stream.put(Tokens(text="c"))
    await turns()
    assert len(reader.batches[0]) == 3
    stream.put(Completed())
    await reader.task


async def test_a_failure_comes_after_what_was_gathered():
    stream = EventStream(gather=60.0)
    reader = Reader(stream)
    await turns()
    for text in "ab":
        stream.put(Tokens(text=text))
    await turns()
    stream.fail(WorkerLost("gone"))
    with pytest.raises(WorkerLost):
        await reader.task
    assert len(reader.batches[0]) == 2
