"""Is there a pipeline of that name, and does it take documents? Asked of the planners before anything is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from sage_actor import Roster
from sage_bus import Bus
from sage_cli.exits import Exit, fail
from sage_core import SystemClock
from sage_wire.messages import ServedModel

__all__ = ["check_pipeline", "require_pipeline"]

_HEARING_TIME = 1.5
_LOOK_INTERVAL = 0.02
_PREFIX = "pipeline/"


async def require_pipeline(bus: Bus, name: str) -> None:
    """Fail with status 2 unless some planner serves `name` for documents. Where no planner is heard, jobs wait."""
    roster = Roster(bus, SystemClock())
    await roster.start()
    try:
        ends = time.monotonic() + _HEARING_TIME
        while True:
            pipelines = [
                model
                for actor in roster.actors.values()
                for model in actor.models
                if model.task == "pipeline"
            ]
            is_found = any(_plain(model.name) == _plain(name) for model in pipelines)
            if is_found or time.monotonic() >= ends:
                break
            await asyncio.sleep(_LOOK_INTERVAL)
    finally:
        await roster.stop()
    if pipelines:
        check_pipeline(name, pipelines)


def check_pipeline(name: str, pipelines: Iterable[ServedModel]) -> None:
    """Fail with status 2 unless `name`, with or without `pipeline/`, is there and takes documents."""
    takes = {_plain(model.name): model.takes for model in pipelines}
    fitting = ", ".join(sorted(each for each, what in takes.items() if what == "documents")) or "none"
    found = takes.get(_plain(name))
    if found is None:
        fail(f"--pipeline is {name!r}, which does not exist; those for documents: {fitting}", Exit.USAGE)
    if found not in ("", "documents"):
        fail(f"--pipeline is {name!r}, which takes {found}; those for documents: {fitting}", Exit.USAGE)


def _plain(name: str) -> str:
    return name.removeprefix(_PREFIX)
