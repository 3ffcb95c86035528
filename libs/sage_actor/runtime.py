"""Runs one actor: subscribes its handlers, restarts it after a crash with fresh state, drains it, ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from typing import Final

from sage_actor.actor import Actor, Presence
from sage_actor.announcer import Announcer
from sage_actor.context import ActorContext
from sage_actor.desk import Desk, Outcome, Route
from sage_actor.handlers import HandlerSpec, handler_specs
from sage_actor.life import Life
from sage_actor.system import SystemHandlers
from sage_bus.bus import Bus, BusEvent, Received, Subscription
from sage_core import ActorRestarted, Clock, SageError, SystemClock, Unavailable, new_id
from sage_core.settings import ActorSettings
from sage_telemetry import Telemetry, get_logger, metrics
from sage_wire import subjects
from sage_wire.messages import Pong

__all__ = ["MAX_CRASHES", "ActorRuntime"]

MAX_CRASHES: Final = 4
"""Crashes in a row, with no successful call between, that end the process."""
EXIT_CLEAN: Final = 0
EXIT_CRASHED: Final = 1

log = get_logger()
_crashes = metrics.counter("sage_actor_crashes", "Lives of the actor that ended in a crash.")


class ActorRuntime:
    """One actor on two connections: `bus` for data, `control` for presence, ping and short messages.

    `start` returns when the actor is ready; `run_until_stopped` returns the exit code: 0 after a drain or stop,
    1 after four crashes in a row. States as announced: starting, ready, draining, stopped.
    """

    def __init__(
        self,
        factory: Callable[[ActorContext], Actor],
        *,
        actor_id: str,
        bus: Bus,
        control: Bus,
        settings: ActorSettings,
        clock: Clock | None = None,
        telemetry: Telemetry | None = None,
        kind: str | None = None,
    ) -> None:
        self._factory = factory
        self._kind = kind or getattr(factory, "kind", Actor.kind)
        self._bus = bus
        self._control = control
        self._settings = settings
        self._clock = clock or SystemClock()
        self._telemetry = telemetry
        self._base = copy_context()
        self._life: Life | None = None
        self._num_crashes = 0
        self._exit_code = EXIT_CLEAN
        self._restart: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._force = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._system_subscriptions: list[Subscription] = []
        outcome = Outcome(succeeded=self._succeeded, crashed=self._handler_crashed)
        self._desks = (self._desk(outcome), self._desk(outcome))
        self._system_desk = self._desk(Outcome())
        self.actor_id = actor_id
        self._announcer = Announcer(
            actor_id=actor_id,
            kind=self._kind,
            bus=control,
            interval=settings.announce_interval,
            clock=self._clock,
        )
        self._announcing: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """starting, ready, draining or stopped."""
        return self._announcer.state

    @property
    def epoch(self) -> str:
        """The id of the present life."""
        return self._announcer.epoch

    @property
    def actor(self) -> Actor | None:
        """The actor of the present life; None between two lives."""
        return None if self._life is None else self._life.actor

    @property
    def num_in_flight(self) -> int:
        """Calls that run or wait."""
        return sum(desk.num_running + desk.num_waiting for desk in self._desks)

    async def start(self) -> None:
        """Bring the actor up. Raises what its `__init__` or `on_start` raised; nothing is left running then."""
        self._control.on_event(self._bus_event)
        try:
            await self._start_system()
            await self._begin_life()
            await self._subscribe()
        except BaseException:
            await self._finish(Unavailable(f"{self.actor_id} could not start"))
            raise
        self._enter("ready")
        log.info("actor_started", epoch=self.epoch)

    async def stop(self, drain: bool = True, timeout: float | None = None) -> None:
        """Stop and return when stopped; idempotent. With `drain`, what runs may finish within `timeout` seconds
        (the settings' drain_timeout where None). A later call without `drain` cuts a drain short."""
        if not drain:
            self._force.set()
        if self._stopping is None:
            limit = self._settings.drain_timeout if timeout is None else timeout
            self._stopping = asyncio.get_running_loop().create_task(self._stop(limit), name="stop")
        await asyncio.shield(self._stopping)

    async def run_until_stopped(self) -> int:
        """Wait until the actor was stopped, drained or has crashed too often; return the exit code."""
        await self._stopped.wait()
        return self._exit_code

    # Life and restart.

    async def _begin_life(self) -> None:
        life = Life(self._base, self._crashed)
        epoch = new_id(length=12)
        context = ActorContext(
            actor_id=self.actor_id,
            kind=self._kind,
            epoch=epoch,
            settings=self._settings,
            clock=self._clock,
            bus=self._bus,
            control=self._control,
            telemetry=self._telemetry,
            log=get_logger().bind(epoch=epoch),
            spawn=life.spawn,
            announce=self._announcer.announce,
        )
        self._life = life
        self._announcer.epoch = epoch
        life.actor = self._factory(context)
        await life.actor.on_start()
        life.is_started = True
