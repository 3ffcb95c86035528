"""Runs one actor: subscribes its handlers, restarts it after a crash with fresh state, drains it, ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Final

from sage_actor.actor import Actor, Presence
from sage_actor.announcer import Announcer
from sage_actor.context import ActorContext
from sage_actor.desk import Desk, Outcome, Route
from sage_actor.handlers import handler_specs
from sage_actor.life import STOP_LIMIT, Life
from sage_actor.system import SystemHandlers
from sage_bus.bus import Bus, BusEvent, Received, Subscription
from sage_core import ActorRestarted, Cancelled, Clock, SageError, SystemClock, Unavailable, new_id
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
        self._kind: str = kind or getattr(factory, "kind", None) or Actor.kind
        self._bus = bus
        self._control = control
        self._settings = settings
        self._clock = clock or SystemClock()
        self._telemetry = telemetry
        self._base = copy_context()
        self._life: Life | None = None
        self._num_crashes = 0
        self._exit_code = EXIT_CLEAN
        self._starting: asyncio.Task[None] | None = None
        self._restart: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._force = asyncio.Event()
        self._stopped = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._system_subscriptions: list[Subscription] = []
        self._on_demand: dict[str, tuple[Desk, Route]] = {}
        self._demanded: dict[str, set[Subscription]] = {}
        """By the epoch of the life that opened them."""
        self.actor_id = actor_id
        outcome = Outcome(succeeded=self._succeeded, crashed=self._handler_crashed)
        self._desks = (self._desk(outcome), self._desk(outcome))
        self._system_desk = self._desk(Outcome())
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
        """Bring the actor up. Raises what its `__init__` or `on_start` raised; nothing is left running then.

        Raises Cancelled where `stop`, or a Drain message, came before it was ready.
        """
        self._starting = asyncio.get_running_loop().create_task(self._start(), name="start")
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._stopping is None:
                raise
            await asyncio.shield(self._stopping)
            raise Cancelled(f"{self.actor_id} was stopped while it started") from None
        log.info("actor_started", epoch=self.epoch)

    async def stop(self, drain: bool = True, timeout: float | None = None) -> None:
        """Stop and return when stopped; idempotent. With `drain`, what runs may finish within `timeout` seconds
        (the settings' drain_timeout where None). A later call without `drain` cuts a drain short."""
        if not drain:
            self._force.set()
        self._request_stop(self._settings.drain_timeout if timeout is None else timeout)
        assert self._stopping is not None
        await asyncio.shield(self._stopping)

    async def run_until_stopped(self) -> int:
        """Wait until the actor was stopped, drained or has crashed too often; return the exit code."""
        await self._stopped.wait()
        return self._exit_code

    async def _start(self) -> None:
        self._control.on_event(self._bus_event)
        try:
            await self._start_system()
            life = await self._begin_life()
            await self._subscribe(life)
        except BaseException:
            await self._finish(Unavailable(f"{self.actor_id} could not start"))
            raise
        self._attach(life)

    async def _begin_life(self) -> Life:
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
            listen=partial(self._listen, epoch),
            announce=self._announcer.announce,
        )
        self._life = life
        self._announcer.epoch = epoch
        self._demanded[epoch] = set()
        actor = self._factory(context)
        self._demand_routes(actor)
        await life.start(actor)
        return life

    def _attach(self, life: Life) -> None:
        if life.is_over or life.actor is None or self._stopping is not None:
            return
        self._enter("ready")
        for desk in self._desks:
            desk.attach(life.actor)

    def _enter(self, state: str) -> None:
        self._announcer.state = state
        self._announcer.announce()

    def _presence(self) -> Presence:
        life = self._life
        if life is None or life.actor is None or life.is_over or not life.is_started:
            return Presence()
        try:
            return life.actor.presence()
        except Exception as error:  # the runtime's seam: a bug in the actor, treated as any other
            log.error("presence_failed", exc_info=error)
            self._crashed(life, error)
            return Presence(health="failed")

    # Crashes.

    def _succeeded(self) -> None:
        self._num_crashes = 0

    def _handler_crashed(self, error: BaseException) -> None:
        if self._life is not None:
            self._crashed(self._life, error)

    def _crashed(self, life: Life, error: BaseException) -> None:
        if life is not self._life or life.is_over:
            return
        life.is_over = True
        self._count_crash(error)
        for desk in self._desks:
            desk.detach()
        if self._stopping is not None:
            self._force.set()
            return
        self._restart = asyncio.get_running_loop().create_task(self._restart_actor(life), name="restart")

    def _count_crash(self, error: BaseException) -> None:
        self._num_crashes += 1
        _crashes.inc()
        log.error("actor_crashed", error=repr(error), num_crashes=self._num_crashes, max_crashes=MAX_CRASHES)

    async def _restart_actor(self, life: Life) -> None:
        """End `life` and begin the next. What ran is lost; what waited in the mailbox is served by the new life."""
        while True:
            verdict = ActorRestarted(f"{self.actor_id} crashed and lost this call")
            await self._unsubscribe_demanded()
            await life.end([task for desk in self._desks for task in desk.end_running(verdict)])
            if self._num_crashes >= MAX_CRASHES:
                log.error("crash_limit_reached", num_crashes=self._num_crashes)
                self._exit_code = EXIT_CRASHED
                self._force.set()
                self._request_stop(0.0)
                return
            self._enter("starting")
            try:
                life = await self._begin_life()
            except Exception as error:  # the runtime's seam: a failed start of a later life is one more crash
                assert self._life is not None
                life = self._life
                log.error("restart_failed", exc_info=error)
                self._count_crash(error)
                continue
            self._attach(life)
            log.info("actor_restarted", epoch=self.epoch, num_crashes=self._num_crashes)
            return

    # Drain and stop.

    def _request_stop(self, limit: float) -> int:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(limit), name="stop")
        return self.num_in_flight

    async def _stop(self, limit: float) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
            return
        if self._restart is not None and not self._restart.done():
            self._restart.cancel()
            await asyncio.wait({self._restart})
        self._enter("draining")
        if not self._force.is_set():
            await self._drain_within(limit)
        await self._finish(Unavailable(f"{self.actor_id} is stopping"))
        log.info("actor_stopped", exit_code=self._exit_code)

    async def _drain_within(self, limit: float) -> None:
        log.info("drain_started", num_in_flight=self.num_in_flight, limit_s=limit)
        loop = asyncio.get_running_loop()
        steps = loop.create_task(self._drain(), name="drain")
        forced = loop.create_task(self._force.wait(), name="forced")
        await asyncio.wait({steps, forced}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not steps.done():
            log.warning("drain_cut", num_in_flight=self.num_in_flight, is_forced=forced.done())
        steps.cancel()
        forced.cancel()
        await asyncio.wait({steps, forced}, timeout=STOP_LIMIT)

    async def _drain(self) -> None:
        actor = self.actor
        if actor is not None:
            try:
                await actor.on_drain()
            except Exception as error:  # the runtime's seam: the drain goes on without the actor's part
                log.error("on_drain_failed", exc_info=error)
        await self._unsubscribe(self._subscriptions)
        await self._unsubscribe_demanded()
        for desk in self._desks:
            await desk.wait_idle()

    async def _finish(self, verdict: SageError) -> None:
        await self._unsubscribe(self._subscriptions)
        await self._unsubscribe_demanded()
        tasks = []
        for desk in self._desks:
            desk.detach()
            desk.refuse_waiting(verdict)
            tasks += desk.end_running(verdict)
        if self._life is not None:
            await self._life.end(tasks)
        self._announcer.state = "stopped"
        self._announcer.announce_now()
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.wait({self._announcing})
        await self._unsubscribe(self._system_subscriptions)
        self._system_desk.detach()
        self._stopped.set()

    # Subscriptions.

    async def _start_system(self) -> None:
        handlers = SystemHandlers(
            actor_id=self.actor_id,
            telemetry=self._telemetry,
            pong=lambda: Pong(actor_id=self.actor_id, epoch=self.epoch, state=self.state),
            announce=self._announcer.announce,
            drain=self._request_stop,
        )
        for spec in handler_specs(SystemHandlers):
            route = self._system_desk.route(spec, self._control)
            self._system_subscriptions.append(await self._open(self._system_desk, route, handlers))
        self._system_desk.attach(handlers)
        self._announcer.presence = self._presence
        self._announcer.failed = self._handler_crashed
        self._announcing = asyncio.get_running_loop().create_task(self._announcer.run(), name="announce")

    async def _subscribe(self, life: Life) -> None:
        assert life.actor is not None
        data_desk, control_desk = self._desks
        for spec in handler_specs(type(life.actor)):
            if not spec.is_on_demand:
                desk = control_desk if spec.is_control else data_desk
                route = desk.route(spec, self._control if spec.is_control else self._bus)
                self._subscriptions.append(await self._open(desk, route, life.actor))

    def _demand_routes(self, actor: Actor) -> None:
        """Prepare the lanes of handlers on demand: they outlive the subscriptions."""
        data_desk, control_desk = self._desks
        for spec in handler_specs(type(actor)):
            if spec.is_on_demand and spec.method not in self._on_demand:
                desk = control_desk if spec.is_control else data_desk
                route = desk.route(spec, self._control if spec.is_control else self._bus)
                self._on_demand[spec.method] = desk, route

    async def _listen(self, epoch: str, method: str, subject: str) -> Subscription:
        desk, route = self._on_demand[method]
        opened = await self._open_on(desk, route, subject)
        mine = self._demanded.get(epoch)
        if mine is None:  # the life that asked has ended meanwhile
            await opened.unsubscribe()
            return opened
        subscription = _Demanded(opened, mine)
        mine.add(subscription)
        return subscription

    async def _open(self, desk: Desk, route: Route, target: object) -> Subscription:
        spec = route.spec
        subject = subjects.actor(self.actor_id, spec.verb) if spec.subject is None else spec.subject(target)
        return await self._open_on(desk, route, subject)

    async def _open_on(self, desk: Desk, route: Route, subject: str) -> Subscription:
        def accept(received: Received) -> None:
            desk.accept(route, received)

        return await route.bus.subscribe(subject, accept, queue=route.spec.queue)

    async def _unsubscribe_demanded(self) -> None:
        opened, self._demanded = self._demanded, {}
        for subscriptions in opened.values():
            await self._unsubscribe(list(subscriptions))

    async def _unsubscribe(self, subscriptions: list[Subscription]) -> None:
        while subscriptions:
            try:
                await subscriptions.pop().unsubscribe()
            except SageError as error:
                log.warning("unsubscribe_failed", error=error.message)

    def _bus_event(self, event: BusEvent, _detail: str) -> None:
        if event is BusEvent.RECONNECTED:
            self._announcer.announce()

    def _desk(self, outcome: Outcome) -> Desk:
        return Desk(
            max_waiting=self._settings.max_mailbox,
            max_slots=self._settings.max_slots,
            default_budget=self._settings.default_budget,
            clock=self._clock,
            context=self._base,
            outcome=outcome,
        )


class _Demanded:
    """A subscription that a life opened for itself; known to the runtime until it ends."""

    def __init__(self, opened: Subscription, known: set[Subscription]) -> None:
        self._opened = opened
        self._known = known

    async def unsubscribe(self) -> None:
        """See `Subscription.unsubscribe`."""
        self._known.discard(self)
        await self._opened.unsubscribe()
