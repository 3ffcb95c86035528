"""What every route of the gateway shares: its parts. One per life of the actor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from sage_core import Clock
from sage_gateway.access import Gate
from sage_gateway.catalog import Catalog
from sage_gateway.in_flight import InFlight
from sage_gateway.ports import WorkPort
from sage_gateway.settings import GatewaySection

__all__ = ["Edge", "Spawn"]


class Spawn(Protocol):
    """Starts a task that ends with this life of the gateway; an exception in it is a crash."""

    def __call__(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `coroutine`."""
        ...


@dataclass(slots=True)
class Edge:
    """The gateway's parts. `spawn` is for what must outlive the request that asked for it."""

    settings: GatewaySection
    clock: Clock
    port: WorkPort
    catalog: Catalog
    in_flight: InFlight
    gate: Gate
    spawn: Spawn
    sample_ratio: float = 1.0
    created: int = field(default_factory=lambda: int(time.time()))
    """When this gateway started, in Unix seconds: shown as the age of every model."""
