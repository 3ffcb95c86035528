"""What an actor is: a class with typed handlers and four hooks. The runtime owns its life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sage_wire.messages import ServedModel, Telemetry

if TYPE_CHECKING:
    from sage_actor.context import ActorContext

__all__ = ["Actor", "Presence"]


@dataclass(frozen=True, slots=True)
class Presence:
    """What an actor announces of itself; see `Announcement`.

    `in_flight` lists what it holds as `request_id/attempt`, `num_tokens` how many tokens each has generated.
    """

    models: tuple[ServedModel, ...] = ()
    max_in_flight: int = 0
    num_in_flight: int = 0
    num_queued: int = 0
    in_flight: tuple[str, ...] = ()
    health: str = "ok"
    num_tokens: tuple[int, ...] = ()
    telemetry: tuple[Telemetry, ...] = ()
    leads: tuple[str, ...] = ()


class Actor:
    """Base of every actor. One instance is one life: all its state lives in it and is thrown away by a crash.

    Handlers, hooks and spawned tasks all run in one event loop. Order of a life: `__init__`, `on_start`,
    handlers, (`on_drain`), the last handler ends, spawned tasks are cancelled, `on_stop`.
    """

    kind: ClassVar[str] = "actor"

    def __init__(self, context: ActorContext) -> None:
        self.context = context

    async def on_start(self) -> None:
        """Prepare; runs before any message. Raising at the first start ends the process, later it is a crash."""

    async def on_stop(self) -> None:
        """Release; runs after the last handler ended, also between two lives. Not called where `on_start` raised.

        Limited to five seconds.
        """

    async def on_drain(self) -> None:
        """Stop taking work; return when all that is held is finished or handed over.

        Handlers are still called meanwhile. Cancelled when the drain limit is reached.
        """

    def presence(self) -> Presence:
        """Return a snapshot for the next announcement; cheap, called at least once per interval."""
        return Presence()
