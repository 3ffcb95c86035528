"""What the promises of the bus are told with: a callback that keeps, a feed's next entry, a peer that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sage_bus import Bus, Feed, Received

T = TypeVar("T")


class Inbox:
    """A callback that keeps what it got."""

    def __init__(self) -> None:
        self.messages: list[Received] = []
        self._arrived = asyncio.Event()

    def __call__(self, message: Received) -> None:
        self.messages.append(message)
        self._arrived.set()

    async def wait(self, count: int) -> list[Received]:
        async with asyncio.timeout(5):
            while len(self.messages) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.messages


async def read(feed: Feed[T], timeout: float = 5.0) -> T:
    async with asyncio.timeout(timeout):
        return await feed.__anext__()


def answers(bus: Bus, payload: bytes = b"pong") -> Callable[[Received], None]:
    def answer(message: Received) -> None:
        assert message.reply is not None
        bus.publish(message.reply, payload)

    return answer
