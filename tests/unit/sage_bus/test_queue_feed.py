"""A feed loses nothing to a cancelled reader and gives back what was never read."""

from __future__ import annotations

import asyncio

import pytest

from sage_bus.feed import QueueFeed
from sage_core import Unavailable


async def test_a_cancelled_read_loses_nothing_whenever_it_is_cancelled():
    feed: QueueFeed[int] = QueueFeed()
    for num_turns in range(5):
        reading = asyncio.create_task(feed.__anext__())
        await asyncio.sleep(0)
        feed.push(num_turns)
        for _ in range(num_turns):
            await asyncio.sleep(0)
        reading.cancel()
        outcome = (await asyncio.gather(reading, return_exceptions=True))[0]
        assert (outcome if isinstance(outcome, int) else await feed.__anext__()) == num_turns
    assert len(feed) == 0


async def test_the_end_comes_after_what_is_there():
    feed: QueueFeed[int] = QueueFeed()
    feed.push(1)
    feed.end()
    feed.push(2)
    assert [item async for item in feed] == [1]


async def test_an_error_is_raised_after_what_is_there_and_again():
    feed: QueueFeed[int] = QueueFeed()
    feed.push(1)
    feed.end(Unavailable("gone"))
    assert await feed.__anext__() == 1
    for _ in range(2):
        with pytest.raises(Unavailable):
            await feed.__anext__()


async def test_closing_gives_back_what_was_never_read_once_and_wakes_the_reader():
    given_back: list[list[int]] = []

    async def on_close(unread: list[int]) -> None:
        given_back.append(unread)

    feed: QueueFeed[int] = QueueFeed(on_close)
    reading = asyncio.create_task(feed.__anext__())
    await asyncio.sleep(0)
    feed.push(1)
    feed.push(2)
    assert await reading == 1
    await feed.aclose()
    await feed.aclose()
    assert given_back == [[2]]
    with pytest.raises(StopAsyncIteration):
        await feed.__anext__()
