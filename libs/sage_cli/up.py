"""One running instance: settings checked, ports held, processes supervised, readiness heard over the bus."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sage_actor import ChangeKind, Roster, RosterChange
from sage_bus import BusEvent, connect
from sage_cli.bus_server import BusServer
from sage_cli.exits import Exit, fail
from sage_cli.members import (
    BUS,
    LLM_WORKER,
    Choices,
    actor_command,
    actor_environment,
    in_own_words,
    kinds_without,
    members,
)
from sage_cli.ports import PortReservations
from sage_cli.runtime import Instance, own_instance, private_folder, write
from sage_cli.screens import Screen, Snapshot
from sage_cli.settings_check import gateway_address, load_all
from sage_cli.supervision import Member, Ready, Silent, Supervision
from sage_cli.supervisor import Launch, Outcome, Supervisor
from sage_core import BusSettings, ConfigurationError, Paths, SystemClock
from sage_wire.messages import Announcement

if TYPE_CHECKING:
    from sage_cli.emulated_fleet import EmulatedWorker

__all__ = ["WhenReady", "run_instance"]

SCHEDULER: Final = "scheduler"
_FLEET_PROFILES = "fleet-profiles.toml"

WhenReady = Callable[[Instance], Awaitable[bool]]
"""Called once everything is ready; returns True to stop the instance, False to go on serving."""


def run_instance(
    name: str,
    choices: Choices,
    open_screen: Callable[[], Screen],
    *,
    num_schedulers: int = 1,
    when_ready: WhenReady | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Outcome:
    """Run the instance `name` until it is stopped or fails. Nothing of it is left running when this returns.

    Of `num_schedulers` one leads each pool, the others stand by.

    Raises ConfigurationError for bad settings, CommandFailed where the instance or the port is taken, and what
    `when_ready` raises, after everything has been stopped.
    """
    paths = Paths.for_instance(name)
    kinds = kinds_without(choices.without)
    workers = _emulated_workers(choices, paths)
    if num_schedulers > 1 and SCHEDULER not in kinds:
        fail(f"--schedulers {num_schedulers} and --without {SCHEDULER} exclude each other", Exit.USAGE)
    if choices.config is not None and not choices.config.exists():
        fail(f"settings file {choices.config} does not exist", Exit.USAGE)
    trial = actor_environment(
        environ, name=name, bus_url=BusSettings().url, gateway_port=choices.port, choices=choices
    )
    try:
        settings = load_all(trial, kinds)
    except ConfigurationError as error:
        raise ConfigurationError(in_own_words(error.message, choices)) from None
    host, port, is_chosen = gateway_address(
        settings, is_chosen=choices.port is not None or "SAGE_GATEWAY__PORT" in environ
    )
    with own_instance(name, paths), PortReservations(private_folder(paths.runtime.parent)) as reserved:
        paths.create()
        _write_profiles(workers, paths)
        if port == 0:
            port = reserved.reserve_any(host)
        elif not reserved.reserve(port, host):
            if is_chosen:
                fail(
                    f"port {port} is in use; choose another with `--port`, or none and get a free one",
                    Exit.USAGE,
                )
            taken, port = port, reserved.reserve_any(host)
            print(f"port {taken} is in use; the gateway listens on {port}", file=sys.stderr, flush=True)
        bus = BusServer(paths, reserved)
        instance = Instance(
            name=name,
            pid=os.getpid(),
            bus_url=bus.url,
            gateway_url=f"http://{_reachable(host)}:{port}",
            started=time.time(),
            kinds=[*kinds, *([LLM_WORKER] * (len(workers) - 1)), *([SCHEDULER] * (num_schedulers - 1))],
        )
        environment = actor_environment(
            environ, name=name, bus_url=bus.url, gateway_port=port, choices=choices
        )
        write(paths, instance)
        running = _Running(instance, paths, bus, environment, workers, open_screen(), when_ready)
        try:
            return asyncio.run(running.run())
        finally:
            running.close()


def _emulated_workers(choices: Choices, paths: Paths) -> tuple[EmulatedWorker, ...]:
    if choices.fleet is None:
        return ()
    from sage_cli.emulated_fleet import emulated_workers, find_emulated_fleet, refuse_engine_options

    refuse_engine_options(choices.model, choices.engine, choices.without)
    return emulated_workers(find_emulated_fleet(choices.fleet), paths.runtime / _FLEET_PROFILES)


def _write_profiles(workers: tuple[EmulatedWorker, ...], paths: Paths) -> None:
    if workers:
        from sage_cli.emulated_fleet import profiles_toml

        (paths.runtime / _FLEET_PROFILES).write_text(profiles_toml(workers), "utf-8")


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 - compared, not bound


def _standbys(num_schedulers: int) -> tuple[str, ...]:
    """Return what the schedulers beside the first are called."""
    return tuple(f"{SCHEDULER}-{number}" for number in range(2, num_schedulers + 1))


def _with(found: tuple[Member, ...], standbys: tuple[str, ...]) -> tuple[Member, ...]:
    more = [replace(member, name=name) for member in found if member.name == SCHEDULER for name in standbys]
    return (*found, *more)


class _Running:
    """The glue of one life: supervisor, roster and screen tell each other what happened."""

    def __init__(
        self,
        instance: Instance,
        paths: Paths,
        bus: BusServer,
        environment: Mapping[str, str],
        workers: tuple[EmulatedWorker, ...],
        screen: Screen,
        when_ready: WhenReady | None,
    ) -> None:
        self.instance = instance
        self.paths = paths
        self.bus = bus
        self.environment = environment
        self.workers = {worker.name: worker for worker in workers}
        self.screen = screen
        self.when_ready = when_ready
        self.standbys = _standbys(instance.kinds.count(SCHEDULER))
        self.supervision = Supervision(
            _with(members(tuple(dict.fromkeys(instance.kinds)), workers), self.standbys)
        )
        self.supervisor = Supervisor(self.supervision, self._launch, paths.logs, self._changed)
        self.announcements: dict[str, Announcement] = {}
        self.all_ready = asyncio.Event()

    async def run(self) -> Outcome:
        return await self.supervisor.run(self._accompany)

    def close(self) -> None:
        self.screen.close()
        self.bus.close()

    def _launch(self, name: str) -> Launch:
        if name == BUS:
            return Launch(self.bus.command(), {"PATH": os.environ.get("PATH", "")})
        worker = self.workers.get(name)
        if worker is not None:
            return Launch(actor_command(LLM_WORKER, name), {**self.environment, **worker.environment})
        return Launch(actor_command(SCHEDULER if name in self.standbys else name, name), self.environment)

    def _changed(self) -> None:
        if self.supervision.is_ready:
            self.all_ready.set()
        self.screen.show(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            name=self.instance.name,
            gateway_url=self.instance.gateway_url,
            logs=str(self.paths.logs),
            members=self.supervision.views(),
            announcements=self.announcements,
            is_ready=self.supervision.is_ready,
            is_stopping=self.supervision.is_stopping,
        )

    async def _accompany(self) -> None:
        """Turn what is heard on the bus into readiness; then run what was asked for."""
        bus = await connect(BusSettings(url=self.bus.url, connect_timeout=60.0), name="sage-up")
        try:
            bus.on_event(self._bus_event)
            self.supervisor.post(Ready(BUS))
            roster = Roster(bus, SystemClock())
            roster.subscribe(self._roster_changed)
            await roster.start()
            await self.all_ready.wait()
            if self.when_ready is not None and await self.when_ready(self.instance):
                self.supervisor.stop()
            await asyncio.Event().wait()
        finally:
            await bus.close(timeout=0.5)

    def _bus_event(self, event: BusEvent, _detail: str) -> None:
        if event is BusEvent.RECONNECTED:
            self.supervisor.post(Ready(BUS))

    def _roster_changed(self, change: RosterChange) -> None:
        found = change.announcement
        # What an earlier life said before it was killed may arrive after the next one was started.
        if found.pid != self.supervisor.pid(found.actor_id):
            return
        if change.kind is ChangeKind.DOWN:
            self.announcements.pop(found.actor_id, None)
            self.supervisor.post(Silent(found.actor_id))
            return
        self.announcements[found.actor_id] = found
        if found.state == "ready":
            self.supervisor.post(Ready(found.actor_id))
        else:
            self.screen.show(self._snapshot())
