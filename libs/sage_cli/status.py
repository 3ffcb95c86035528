"""What an instance's actors say of themselves, gathered over the bus."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sage_actor import Roster, RosterChange
from sage_cli.connection import open_bus
from sage_cli.runtime import Instance
from sage_cli.screens import model_names
from sage_core import SystemClock
from sage_wire.messages import Announcement, ServedModel

__all__ = ["ActorReport", "Observed", "StatusReport", "age_text", "observe", "report", "status_table"]

_HEARING_TIME = 1.5
"""Longer than one announcement interval: also those are heard that the instance did not start, such as standbys."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The announcements of one look, by actor id."""

    actors: dict[str, Announcement]

    def missing(self, kinds: Sequence[str]) -> list[str]:
        """Return the kinds of which fewer are ready than `kinds` lists, each once."""
        found = Counter(actor.kind for actor in self.actors.values() if actor.state == "ready")
        return [kind for kind, number in Counter(kinds).items() if found[kind] < number]

    def unled(self) -> list[str]:
        """Return the pools of ready workers that no scheduler leads yet, sorted; none where there is no scheduler."""
        if all(actor.kind != "scheduler" for actor in self.actors.values()):
            return []
        led = {pool for actor in self.actors.values() for pool in actor.leads}
        ready = [actor for actor in self.actors.values() if actor.state == "ready"]
        return sorted({model.name for actor in ready for model in actor.models} - led)


class ActorReport(msgspec.Struct, frozen=True):
    """One actor in `sage status --json`."""

    id: str
    kind: str
    state: str
    health: str
    models: list[ServedModel]
    num_in_flight: int
    max_in_flight: int
    num_queued: int
    age_s: float
    version: str
    host: str
    pid: int
    epoch: str
    leads: list[str] = []


class StatusReport(msgspec.Struct, frozen=True):
    """`sage status --json`."""

    name: str
    is_ready: bool
    gateway_url: str
    pid: int
    age_s: float
    actors: list[ActorReport]
    missing: list[str]


async def observe(instance: Instance, *, wait_ready: float = 0.0) -> Observed:
    """Listen for 1.5 s, so that everybody is heard; with `wait_ready` on until all are ready, at most so long."""
    async with open_bus(instance) as bus:
        roster = Roster(bus, SystemClock())
        changed = asyncio.Event()

        def note(_change: RosterChange) -> None:
            changed.set()

        roster.subscribe(note)
        await roster.start()
        started = time.monotonic()
        while True:
            changed.clear()
            found = Observed(dict(roster.actors))
            elapsed = time.monotonic() - started
            is_ready = not found.missing(instance.kinds) and not found.unled()
            limit = _HEARING_TIME if is_ready else max(_HEARING_TIME, wait_ready)
            if elapsed >= limit:
                return found
            try:
                await asyncio.wait_for(changed.wait(), limit - elapsed)
            except TimeoutError:
                continue


def report(instance: Instance, found: Observed) -> StatusReport:
    """Return the JSON face of `found`."""
    actors = [
        ActorReport(
            id=actor.actor_id,
            kind=actor.kind,
            state=actor.state,
            health=actor.health,
            models=actor.models,
            num_in_flight=actor.num_in_flight,
            max_in_flight=actor.max_in_flight,
            num_queued=actor.num_queued,
            age_s=round(actor.started_s_ago, 1),
            version=actor.version,
            host=actor.host,
            pid=actor.pid,
            epoch=actor.epoch,
            leads=actor.leads,
        )
        for actor in _sorted(found)
    ]
    missing = found.missing(instance.kinds)
    return StatusReport(
        name=instance.name,
        is_ready=not missing,
        gateway_url=instance.gateway_url,
        pid=instance.pid,
        age_s=round(time.time() - instance.started, 1),
        actors=actors,
        missing=missing,
    )


def status_table(instance: Instance, found: Observed) -> Group:
    """Return the terminal face of `found`."""
    actors = _sorted(found)
    hosts = {(actor.version, actor.host) for actor in actors}
    has_ids = any(actor.actor_id != actor.kind for actor in actors)
    table = Table(box=None, pad_edge=False, header_style="bold")
    # On one machine with one actor of each kind, ids, versions and hosts say nothing line by line.
    for title in ("kind", *(["id"] if has_ids else []), "state"):
        table.add_column(title, no_wrap=True)
    table.add_column("health", overflow="fold")
    table.add_column("serves", overflow="fold")
    for title in ("in flight", "queued", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("version", "host") if len(hosts) > 1 else ():
        table.add_column(title, no_wrap=True)
    for actor in actors:
        limit = f"/{actor.max_in_flight}" if actor.max_in_flight else ""
        table.add_row(
            actor.kind,
            *([actor.actor_id] if has_ids else []),
            Text(actor.state, style="green" if actor.state == "ready" else "yellow"),
            Text(actor.health, style="" if actor.health == "ok" else "red"),
            _serves(actor),
            f"{actor.num_in_flight}{limit}",
            str(actor.num_queued),
            age_text(actor.started_s_ago),
            *((actor.version, actor.host) if len(hosts) > 1 else ()),
        )
    missing = found.missing(instance.kinds)
    head = Text.assemble(("SAGE ", "bold"), instance.name, "  ", (f"{instance.gateway_url}/v1", "green"))
    if len(hosts) == 1:
        version, host = next(iter(hosts))
        head.append(f"  version {version} on {host}", style="dim")
    foot = Text(f"not ready: {', '.join(missing)}", style="red") if missing else Text("ready", style="green")
    return Group(head, table, foot)


def age_text(seconds: float) -> str:
    """Return an age in its two largest units: `42s`, `3m 5s`, `2h 10m`, `4d 3h`."""
    whole = int(seconds)
    for size, name, next_size, next_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{name} {whole % size // next_size}{next_name}"
    return f"{whole}s"


def _serves(actor: Announcement) -> str:
    if actor.kind != "scheduler":
        return model_names(actor)
    return f"leads {', '.join(actor.leads)}" if actor.leads else "stands by"


def _sorted(found: Observed) -> list[Announcement]:
    return sorted(found.actors.values(), key=lambda actor: (actor.kind, actor.actor_id))
