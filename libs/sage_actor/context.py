"""What an actor is given: its name, its limits, and the ways it may act on the world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from structlog.typing import FilteringBoundLogger

from sage_actor.calls import Caller
from sage_bus.bus import Bus, Subscription
from sage_core import Budget, Clock, new_id
from sage_core.settings import ActorSettings
from sage_telemetry import Telemetry
from sage_wire.messages import Message

__all__ = ["ActorContext", "Listen", "Spawn"]

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class Spawn(Protocol):
    """Starts a task that one life of an actor owns."""

    def __call__(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start `coroutine`."""
        ...


class Listen(Protocol):
    """Opens a further subject for a handler of one life."""

    async def __call__(self, method: str, subject: str) -> Subscription:
        """Subscribe."""
        ...


class ActorContext:
    """One life's view of the runtime. `bus` carries data, `control` is a second connection for short messages."""

    def __init__(
        self,
        *,
        actor_id: str,
        kind: str,
        epoch: str,
        settings: ActorSettings,
        clock: Clock,
        bus: Bus,
        control: Bus,
        telemetry: Telemetry | None,
        log: FilteringBoundLogger,
        spawn: Spawn,
        listen: Listen,
        announce: Callable[[], None],
    ) -> None:
        self.actor_id = actor_id
        self.kind = kind
        self.epoch = epoch
        self.settings = settings
        self.clock = clock
        self.bus = bus
        self.control = control
        self.telemetry = telemetry
        self.log = log
        self._spawn = spawn
        self._listen = listen
        self._announce = announce
        self._caller = Caller(new_id(length=12), clock)

    async def ask(
        self,
        subject: str,
        message: Message,
        reply_type: type[M],
        *,
        budget: Budget | float,
        is_control: bool = False,
    ) -> M:
        """Ask and wait for the reply, for `budget` or what is left of the call being handled, if that is less.

        Raises the peer's SageError, Unavailable at once where nobody listens, DeadlineExceeded when the budget is
        spent. Cancelling the caller cancels the handler that works on the call.
        """
        bus = self.control if is_control else self.bus
        return await self._caller.ask(bus, subject, message, reply_type, budget)

    def tell(
        self,
        subject: str,
        message: Message,
        *,
        budget: Budget | float | None = None,
        is_control: bool = False,
    ) -> None:
        """Send without an answer; never waits, and nothing proves that it arrives. Raises what `publish` raises."""
        self._caller.tell(self.control if is_control else self.bus, subject, message, budget)

    def spawn(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that ends with this life. An exception in it is a crash of the actor.

        It starts without a current call or trace; pass on what it needs.
        """
        return self._spawn(coroutine, name=name)

    async def listen(self, method: str, subject: str) -> Subscription:
        """Let the handler named `method`, one that `is_on_demand`, answer on `subject` too.

        Active at the server when this returns; ends with `unsubscribe`, or with this life. What arrived before is
        still handled afterwards. Raises KeyError for a handler that is not on demand.
        """
        return await self._listen(method, subject)

    def announce(self) -> None:
        """Announce presence now; calls within one turn of the event loop make one announcement."""
        self._announce()
