"""A command's own connection to the bus of a running instance."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from sage_bus import Bus, connect
from sage_cli.exits import Exit, fail
from sage_cli.runtime import Instance
from sage_core import BusSettings, SageError

__all__ = ["open_bus"]

_CONNECT_TIMEOUT = 5.0


@contextlib.asynccontextmanager
async def open_bus(instance: Instance) -> AsyncIterator[Bus]:
    """Connect for as long as the block runs. Fails with status 3 where the instance's bus does not answer."""
    settings = BusSettings(url=instance.bus_url, connect_timeout=_CONNECT_TIMEOUT)
    try:
        bus = await connect(settings, name="sage-cli")
    except SageError as error:
        fail(f"the bus of instance {instance.name!r} does not answer: {error.message}", Exit.NOT_RUNNING)
    try:
        yield bus
    finally:
        await bus.close(timeout=1.0)
