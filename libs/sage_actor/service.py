"""`main()` of every service: settings, telemetry, two connections, the runtime, signals, the service manager."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from sage_actor.actor import Actor
from sage_actor.announcer import installed_version
from sage_actor.context import ActorContext
from sage_actor.garbage import settle_garbage_collector
from sage_actor.help import build_parser
from sage_actor.notify import notify, watchdog_interval
from sage_actor.parent import die_with_parent
from sage_actor.runtime import ActorRuntime
from sage_bus import Bus, BusEvent, connect
from sage_core import (
    BusUnavailable,
    Cancelled,
    ConfigurationError,
    SageError,
    ServiceSettings,
    load_settings,
    new_id,
)
from sage_telemetry import Telemetry, configure, get_logger

__all__ = ["EXIT_BUS", "EXIT_CLEAN", "EXIT_CONFIGURATION", "EXIT_CRASHED", "run_service"]

EXIT_CLEAN: Final = 0
EXIT_CRASHED: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_BUS: Final = 3
LEAVE_LIMIT: Final = 3.0
"""Seconds that threads may hold up the exit, once all is closed."""

_ACTOR_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
S = TypeVar("S", bound=ServiceSettings)
log = get_logger()


def run_service(
    *,
    kind: str,
    settings_type: type[S],
    build: Callable[[S, ActorContext], Actor],
    description: str,
    ready_check: Callable[[Actor], Awaitable[None]] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one actor until it is told to stop; return the exit code for `sys.exit`.

    0: stopped by SIGTERM, SIGINT or a Drain message. 1: crashed four times in a row, could not start, or was
    forced by a second signal. 2: wrong settings, one line per problem on stderr. 3: NATS was not reachable at the
    start, or closed the connection for good. `ready_check` is awaited before the service manager hears READY.
    """
    prog = f"sage-{kind}"
    options = build_parser(prog, description, settings_type).parse_args(argv)
    actor_id = options.id or new_id(kind, 8)
    try:
        if options.parent_pid is not None and not die_with_parent(options.parent_pid):
            raise ConfigurationError(
                f"--parent-pid is {options.parent_pid}, which is not, or no longer, our parent"
            )
        if _ACTOR_ID.fullmatch(actor_id) is None:
            raise ConfigurationError(f"--id is {actor_id!r}; expected 1 to 64 of A-Z, a-z, 0-9, '_' and '-'")
        settings = load_settings(settings_type, Path(options.config) if options.config else None)
        telemetry = configure(prog, actor_id, settings.telemetry, version=installed_version())
    except ConfigurationError as error:
        _say(prog, error.message)
        return EXIT_CONFIGURATION
    service = _Service(
        prog, kind, actor_id, settings, telemetry, lambda context: build(settings, context), ready_check
    )
    guard = _ExitGuard()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(service.run())
            guard.arm(code)
    finally:
        telemetry.shutdown(2.0)
        guard.release()
    return code


class _Service:
    """One process: connections, runtime and signals, in the order in which they are needed."""

    def __init__(
        self,
        prog: str,
        kind: str,
        actor_id: str,
        settings: ServiceSettings,
        telemetry: Telemetry,
        factory: Callable[[ActorContext], Actor],
        ready_check: Callable[[Actor], Awaitable[None]] | None,
    ) -> None:
        self._prog = prog
        self._kind = kind
        self._actor_id = actor_id
        self._settings = settings
        self._telemetry = telemetry
        self._factory = factory
        self._ready_check = ready_check
        self._main: asyncio.Task[int] | None = None
        self._runtime: ActorRuntime | None = None
        self._stops: set[asyncio.Task[None]] = set()
        self._num_signals = 0
        self._forced_code: int | None = None
        self._is_closing = False

    async def run(self) -> int:
        """Run to the end; never raises for what can be told in one line."""
        loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        try:
            code = await self._connect_and_serve()
        except asyncio.CancelledError:
            if not self._num_signals:
                raise
            code = EXIT_CLEAN
        except ConfigurationError as error:
            code = self._failed(error.message, EXIT_CONFIGURATION)
        except BusUnavailable as error:
            code = self._failed(error.message, EXIT_BUS)
        except SageError as error:
            code = self._failed(f"could not start: {error.message}", EXIT_CRASHED)
        except (
            Exception
        ) as error:  # the seam of the process: whatever is left becomes one line and a logged cause
            log.error("start_failed", exc_info=error)
            code = self._failed(f"could not start: {type(error).__name__}: {error}", EXIT_CRASHED)
        return code if self._forced_code is None else self._forced_code

    async def _connect_and_serve(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            bus = await self._connect("data", stack)
            control = await self._connect("control", stack)
            runtime = ActorRuntime(
                self._factory,
                actor_id=self._actor_id,
                bus=bus,
                control=control,
                settings=self._settings.actor,
                telemetry=self._telemetry,
                kind=self._kind,
            )
            self._runtime = runtime
            try:
                await runtime.start()
            except Cancelled:
                return EXIT_CLEAN
            stack.push_async_callback(runtime.stop, drain=False)
            await self._check_ready(runtime)
            settle_garbage_collector()
            notify(f"READY=1\nSTATUS=ready as {self._actor_id}")
            interval = watchdog_interval()
            if interval is not None:
                stack.push_async_callback(_end, asyncio.create_task(_keep_alive(interval, bus, control)))
            return await runtime.run_until_stopped()

    async def _check_ready(self, runtime: ActorRuntime) -> None:
        if self._ready_check is None or runtime.actor is None:
            return
        checking = asyncio.ensure_future(self._ready_check(runtime.actor))
        stopped = asyncio.ensure_future(runtime.run_until_stopped())
        await asyncio.wait({checking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if checking.done():
            await _end(stopped)
            checking.result()
        else:
            await _end(checking)

    async def _connect(self, purpose: str, stack: contextlib.AsyncExitStack) -> Bus:
        bus = await connect(self._settings.bus, name=f"{self._actor_id}/{purpose}", role=self._kind)
        stack.push_async_callback(self._close, bus)
        bus.on_event(self._bus_event)
        return bus

    async def _close(self, bus: Bus) -> None:
        self._is_closing = True
        # A connection that was closed under us cannot prove what it has sent.
        await bus.close(timeout=1.0 if self._forced_code == EXIT_BUS else 5.0)

    def _signalled(self) -> None:
        self._num_signals += 1
        notify("STOPPING=1")
        if self._runtime is None:
            assert self._main is not None
            self._main.cancel()
        elif self._num_signals == 1:
            self._stop(drain=True)
        else:
            log.warning("drain_forced", num_signals=self._num_signals)
            self._forced_code = EXIT_CRASHED
            self._stop(drain=False)

    def _bus_event(self, event: BusEvent, detail: str) -> None:
        if event is BusEvent.CLOSED and not self._is_closing and self._forced_code is None:
            # A closed client never reconnects; only a new process does.
            log.error("bus_lost_for_good", detail=detail)
            self._forced_code = EXIT_BUS
            self._stop(drain=False)

    def _stop(self, *, drain: bool) -> None:
        if self._runtime is None:
            if self._main is not None:
                self._main.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._runtime.stop(drain=drain))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    def _failed(self, message: str, code: int) -> int:
        if self._forced_code is None:
            _say(self._prog, message)
        return code


class _ExitGuard:
    """Ends the process although threads (a model that loads, a call into a library) keep it from exiting."""

    def __init__(self) -> None:
        self._is_released = threading.Event()

    def arm(self, code: int) -> None:
        """Exit with `code` after `LEAVE_LIMIT` seconds, whatever runs."""
        threading.Thread(target=self._watch, args=(code,), name="exit-guard", daemon=True).start()

    def release(self) -> None:
        """Disarm, unless a thread is left that the interpreter would wait for."""
        if not any(
            thread.is_alive() and not thread.daemon and thread is not threading.main_thread()
            for thread in threading.enumerate()
        ):
            self._is_released.set()

    def _watch(self, code: int) -> None:
        if not self._is_released.wait(LEAVE_LIMIT):
            sys.stderr.flush()
            os._exit(code)


async def _keep_alive(interval: float, *buses: Bus) -> None:
    """Tell the service manager that the loop runs and the bus answers; silence makes it restart us."""
    while True:
        try:
            for bus in buses:
                await bus.round_trip(timeout=interval)
            notify("WATCHDOG=1")
        except SageError as error:
            log.warning("watchdog_withheld", error=error.message)
        await asyncio.sleep(interval)


async def _end(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _say(prog: str, message: str) -> None:
    sys.stderr.write("".join(f"{prog}: {line}\n" for line in message.splitlines()))
    sys.stderr.flush()
