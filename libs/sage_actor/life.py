"""One life of an actor: the instance, the tasks it spawned, and how both end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from sage_actor.actor import Actor
from sage_telemetry import get_logger

__all__ = ["STOP_LIMIT", "Life"]

STOP_LIMIT: Final = 5.0
"""Seconds that cancelled tasks, and then `on_stop`, may take."""
log = get_logger()


class Life:
    """Owns an actor and its tasks between two restarts."""

    def __init__(self, context: Context, crashed: Callable[[Life, BaseException], None]) -> None:
        self.actor: Actor | None = None
        self.is_started = False
        self.is_over = False
        self._context = context
        self._crashed = crashed
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self, actor: Actor) -> None:
        """Run `on_start`. Raises what it, or a task spawned by it, raised meanwhile."""
        self.actor = actor
        starting = asyncio.get_running_loop().create_task(actor.on_start(), name="on_start")
        try:
            await asyncio.wait({starting, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            await starting
        finally:
            if not starting.done():
                starting.cancel()
                await _wait([starting])
        self.is_started = True

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start a task of this life; an exception in it is a crash."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine, name=name, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if self.is_over:
            task.cancel()
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        log.error("task_crashed", task=task.get_name(), exc_info=error)
        if self.is_started:
            self._crashed(self, error)
        elif not self._failed.done():
            self._failed.set_exception(error)

    async def end(self, handlers: list[asyncio.Task[None]]) -> None:
        """Wait for cancelled `handlers`, cancel what was spawned, then run `on_stop`. Never raises; bounded."""
        self.is_over = True
        self._failed.cancel()
        await _wait(handlers)
        for task in self._tasks:
            task.cancel()
        await _wait(list(self._tasks))
        if self.actor is None or not self.is_started:
            return
        try:
            async with asyncio.timeout(STOP_LIMIT):
                await self.actor.on_stop()
        except Exception as error:  # the runtime's seam: a failing clean-up must not keep the process
            log.error("on_stop_failed", exc_info=error)


async def _wait(tasks: list[asyncio.Task[Any]]) -> None:
    if not tasks:
        return
    _, pending = await asyncio.wait(tasks, timeout=STOP_LIMIT)
    for task in pending:
        log.error("task_ignored_cancel", task=task.get_name())
