"""What the actors of an instance or a cluster say of themselves, gathered over the bus."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sage_actor import Roster, RosterChange
from sage_cli.connection import open_bus
from sage_cli.runtime import Instance, public_address
from sage_cli.screens import model_names
from sage_core import SystemClock
from sage_wire.messages import Announcement, ServedModel

__all__ = [
    "ActorReport",
    "HostReport",
    "Observed",
    "StatusReport",
    "age_text",
    "observe",
    "report",
    "status_table",
]

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
        return sorted(self.pools() - led)

    def pools(self) -> set[str]:
        """Return the pools of ready workers."""
        ready = [actor for actor in self.actors.values() if actor.state == "ready"]
        return {model.name for actor in ready for model in actor.models}


class ActorReport(msgspec.Struct, frozen=True):
    """One actor in `sage status --json`. `state` is starting, ready, draining or stopped; `age_s`: seconds up."""

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


class HostReport(msgspec.Struct, frozen=True):
    """One host in `sage status --json`; `actors` are ids."""

    name: str
    versions: list[str]
    actors: list[str]
    is_ready: bool


class StatusReport(msgspec.Struct, frozen=True):
    """`sage status --json`. Fields are added, never renamed or removed.

    Of a cluster, `pid` is 0, `age_s` that of the actor that is up the longest, and `gateway_url` empty unless
    `OPENAI_BASE_URL` names one. `versions`: ids of actors by the version they run. `missing`: expected kinds that are
    not ready. `unled`: pools that no scheduler leads.
    """

    name: str
    is_ready: bool
    gateway_url: str
    pid: int
    age_s: float
    actors: list[ActorReport]
    missing: list[str]
    bus: str = ""
    is_cluster: bool = False
    hosts: list[HostReport] = []
    versions: dict[str, list[str]] = {}
    unled: list[str] = []


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
    age = max((actor.started_s_ago for actor in found.actors.values()), default=0.0)
    missing, unled = found.missing(instance.kinds), found.unled()
    return StatusReport(
        name=instance.name,
        is_ready=not missing and not unled,
        gateway_url=instance.gateway_url,
        pid=instance.pid,
        age_s=round(age if instance.is_cluster else time.time() - instance.started, 1),
        actors=actors,
        missing=missing,
        bus=public_address(instance.bus_url),
        is_cluster=instance.is_cluster,
        hosts=[
            HostReport(
                name=host,
                versions=sorted({actor.version for actor in there}),
                actors=[actor.actor_id for actor in there],
                is_ready=all(actor.state == "ready" for actor in there),
            )
            for host, there in _by_host(found).items()
        ],
        versions=_by_version(found),
        unled=unled,
    )


def status_table(instance: Instance, found: Observed) -> Group:
    """Return the terminal face of `found`: a row per actor, under its host where there are several."""
    by_host, by_version = _by_host(found), _by_version(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("actor", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("serves", overflow="fold")
    for title in ("in flight", "queued", "up"):
        table.add_column(title, justify="right", no_wrap=True)
    for host, there in by_host.items():
        if len(by_host) > 1:
            versions = ", ".join(sorted({actor.version for actor in there})) if len(by_version) > 1 else ""
            table.add_row(Text.assemble((host, "bold cyan"), (f"  {versions}" if versions else "", "yellow")))
        indent = "  " if len(by_host) > 1 else ""
        for actor in there:
            limit = f"/{actor.max_in_flight}" if actor.max_in_flight else ""
            table.add_row(
                indent + _name(actor),
                Text(actor.state, style="green" if actor.state == "ready" else "yellow"),
                _serves(actor, found.pools()),
                f"{actor.num_in_flight}{limit}",
                str(actor.num_queued),
                age_text(actor.started_s_ago),
            )
    return Group(_head(instance, by_host, by_version), table, *_feet(instance, found, by_version))


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


def _head(instance: Instance, hosts: Mapping[str, object], versions: Mapping[str, object]) -> Text:
    if instance.is_cluster:
        head = Text.assemble(("SAGE ", "bold"), "cluster at ", (instance.bus_url, "green"))
    else:
        head = Text.assemble(("SAGE ", "bold"), instance.name, "  ", (f"{instance.gateway_url}/v1", "green"))
    if len(versions) == 1:
        head.append(f"  version {next(iter(versions))}", style="dim")
    if hosts:
        head.append(f" on {next(iter(hosts)) if len(hosts) == 1 else f'{len(hosts)} hosts'}", style="dim")
    return head


def _feet(instance: Instance, found: Observed, versions: Mapping[str, list[str]]) -> list[Text]:
    feet = []
    if len(versions) > 1:
        most = max(versions, key=lambda version: len(versions[version]))
        groups = "; ".join(
            f"{version}: {f'{len(ids)} actors' if version == most else ', '.join(ids)}"
            for version, ids in versions.items()
        )
        feet.append(Text(f"mixed versions: {groups}", style="yellow"))
    draining = [actor.actor_id for actor in _sorted(found) if actor.state == "draining"]
    if draining:
        feet.append(Text(f"draining: {', '.join(draining)}", style="yellow"))
    missing, unled = found.missing(instance.kinds), found.unled()
    if missing:
        feet.append(Text(f"not ready: {', '.join(missing)}", style="red"))
    if unled:
        feet.append(Text(f"no scheduler leads {', '.join(unled)}", style="red"))
    return feet if missing or unled else [*feet, Text("ready", style="green")]


def _name(actor: Announcement) -> str:
    is_told = actor.actor_id == actor.kind or actor.actor_id.startswith(f"{actor.kind}-")
    return actor.actor_id if is_told else f"{actor.actor_id} ({actor.kind})"


def _serves(actor: Announcement, pools: set[str]) -> Text:
    if actor.kind != "scheduler":
        text = Text(model_names(actor))
    elif actor.leads and pools <= set(actor.leads):
        text = Text(f"leads all {len(actor.leads)} pools")
    else:
        text = Text(f"leads {', '.join(actor.leads)}" if actor.leads else "stands by")
    if actor.health != "ok":
        text.append(f"{'; ' if text else ''}{actor.health}", style="red")
    return text


def _sorted(found: Observed) -> list[Announcement]:
    return sorted(found.actors.values(), key=lambda actor: (actor.kind, actor.actor_id))


def _by_host(found: Observed) -> dict[str, list[Announcement]]:
    actors = _sorted(found)
    return {
        host: [actor for actor in actors if actor.host == host]
        for host in sorted({actor.host for actor in actors})
    }


def _by_version(found: Observed) -> dict[str, list[str]]:
    actors = _sorted(found)
    return {
        version: [actor.actor_id for actor in actors if actor.version == version]
        for version in sorted({actor.version for actor in actors})
    }
