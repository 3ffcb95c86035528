"""The seam between HTTP and OpenAI: what a body asks for, and how the events that come back become an answer.

An operation is one route's meaning: pure, no IO. Whatever drives it reads the body, submits the works, hands over their
events as they come, and writes what it is given. `Asked` and `Planned` are structs, as they are made for every request:
a frozen dataclass takes 1 us to make, a struct 0.15.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

import msgspec

from sage_gateway.catalog import Catalog
from sage_wire.messages import Event, ServedModel, Usage, Work

__all__ = ["Answer", "Asked", "Operation", "Planned"]


class Answer(Protocol):
    """Turns one request's events into the bytes of its response. Used by one driver, from one event loop."""

    @property
    def is_streamed(self) -> bool:
        """True where the response is server-sent events; else it is one body."""
        ...

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """Take events of work `index`, in order; return what they add to the stream, empty where it is none.

        Choices may be interleaved. Raises Internal for an event that this kind of work never has.
        """
        ...

    def end(self) -> bytes:
        """Return the rest of the stream, or the whole body, once every work has completed."""
        ...

    @property
    def usage(self) -> Usage:
        """The sum over all works that completed."""
        ...

    @property
    def finish_reasons(self) -> list[str]:
        """One per choice that completed; empty for works that generate nothing."""
        ...


class Asked(msgspec.Struct, frozen=True):
    """What an operation may know of its request beside the body. `created` is in Unix seconds, `now` the clock's."""

    request_id: str
    created: int
    now: float
    catalog: Catalog
    allowed_models: Container[str] | None = None
    """What the key may ask for, by `in` alone; None: all."""


class Planned(msgspec.Struct, frozen=True):
    """What to do for a body: submit every work to the pool of `served`, all at once, and answer with `answer`.

    `name` is the operation in the GenAI semantic conventions; `num_ignored` counts fields without meaning here.
    """

    name: str
    served: ServedModel
    works: list[Work]
    answer: Answer
    service_tier: str | None = None
    num_ignored: int = 0


class Operation(Protocol):
    """One route's meaning."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """Return what to do.

        Raises BadRequest or HttpRefused naming the field that is wrong, NotFound for a model that is not served.
        """
        ...
