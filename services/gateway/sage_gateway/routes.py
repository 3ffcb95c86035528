"""What a path is to the gateway: the operation or the handlers behind it, and what is counted of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sage_gateway.meters import RouteMeter
from sage_gateway.metrics import METERS
from sage_gateway.operation import Operation

if TYPE_CHECKING:
    from sage_gateway.handler_visit import HandlerVisit

__all__ = ["Handler", "Route"]

Handler = Callable[["HandlerVisit"], Awaitable[None]]
"""Answers one request, in a task of its own. SageErrors and HttpRefused are left to the caller."""


@dataclass(slots=True)
class Route:
    """What one path answers: an `operation`, by POST, or `handlers` by method.

    `is_work` routes are traced; only `is_public` ones need no key.
    """

    name: str
    operation: Operation | None = None
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    id_prefix: str = "req"
    is_work: bool = False
    is_public: bool = False
    meter: RouteMeter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = METERS.route(self.name)
        if self.operation is not None:
            self.is_work = True

    @property
    def methods(self) -> tuple[str, ...]:
        """What may be asked of it."""
        return ("POST",) if self.operation is not None else tuple(self.handlers)
