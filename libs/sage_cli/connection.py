"""A command's own connection to the bus of a running instance or of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from sage_bus import Bus, connect
from sage_cli.exits import Exit, fail
from sage_cli.runtime import Instance, cluster_bus
from sage_core import BusSettings, ConfigurationError, SageError
from sage_wire.roles import Role

__all__ = ["open_bus"]

_CONNECT_TIMEOUT = 5.0


@contextlib.asynccontextmanager
async def open_bus(instance: Instance) -> AsyncIterator[Bus]:
    """Connect for as long as the block runs. Fails with status 3 where the bus does not answer."""
    # The bus of an instance knows no users; that of a cluster may.
    cluster = cluster_bus() if instance.is_cluster else None
    settings = cluster or BusSettings(url=instance.bus_url)
    settings = settings.model_copy(update={"connect_timeout": _CONNECT_TIMEOUT})
    try:
        bus = await connect(settings, name="sage-cli", role=Role.OPERATOR if cluster is not None else None)
    except ConfigurationError:
        raise
    except SageError as error:
        what = f"cluster {instance.bus_url}" if instance.is_cluster else f"instance {instance.name!r}"
        fail(f"the bus of {what} does not answer: {error.message}", Exit.NOT_RUNNING)
    try:
        yield bus
    finally:
        await bus.close(timeout=1.0)
