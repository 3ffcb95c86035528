"""What `sage up` shows: one live table on a terminal, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sage_cli.supervision import MemberView, State
from sage_wire.messages import Announcement

__all__ = ["LiveScreen", "PlainScreen", "Screen", "Snapshot", "actor_table", "model_names"]

_STYLES = {
    "ready": "green",
    "starting": "yellow",
    "waiting": "dim",
    "restarting": "red",
    "stopping": "yellow",
    "draining": "yellow",
    "stopped": "dim",
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An instance at one moment. `announcements` holds what each actor last said of itself, by actor id."""

    name: str
    gateway_url: str
    logs: str
    members: list[MemberView]
    announcements: Mapping[str, Announcement] = field(default_factory=dict)
    is_ready: bool = False
    is_stopping: bool = False


class Screen(Protocol):
    """Where an instance shows itself."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the state; called after every change."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was found. Idempotent."""
        ...


def model_names(announcement: Announcement) -> str:
    """Return the pools an actor serves, each once, in its own order."""
    return ", ".join(dict.fromkeys(model.name for model in announcement.models))


def actor_table(rows: list[tuple[str, str, Announcement | None, str]]) -> Table:
    """Return a table of (name, state, announcement, note)."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("actor", "state", "serves"):
        table.add_column(title, overflow="fold")
    table.add_column("in flight", justify="right")
    table.add_column("note", overflow="fold")
    for name, state, announcement, note in rows:
        limit = f"/{announcement.max_in_flight}" if announcement and announcement.max_in_flight else ""
        table.add_row(
            name,
            Text(state, style=_STYLES.get(state, "")),
            model_names(announcement) if announcement else "",
            f"{announcement.num_in_flight}{limit}" if announcement else "",
            note,
        )
    return table


def _note(view: MemberView, announcement: Announcement | None) -> str:
    parts = []
    if view.num_restarts:
        parts.append(f"restarted {view.num_restarts} times")
    if announcement is not None and announcement.health not in ("", "ok"):
        parts.append(announcement.health)
    if view.detail and view.state is not State.READY:
        parts.append(view.detail)
    return "; ".join(parts)


class LiveScreen:
    """One table that stays in place; drawn at most four times a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=True, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Replace the table."""
        rows = [
            (view.name, str(view.state), found, _note(view, found))
            for view in snapshot.members
            for found in (snapshot.announcements.get(view.name),)
        ]
        head = Text.assemble(("SAGE ", "bold"), snapshot.name, "  ")
        if snapshot.is_stopping:
            head.append("draining; Ctrl-C again to stop at once", style="yellow")
        elif snapshot.is_ready:
            head.append(f"{snapshot.gateway_url}/v1", style="green")
        else:
            head.append("starting", style="yellow")
        foot = Text(f"logs: {snapshot.logs}   Ctrl-C stops", style="dim")
        self._live.update(Group(head, actor_table(rows), foot))

    def close(self) -> None:
        """Draw a last time and let go of the terminal."""
        self._live.stop()


class PlainScreen:
    """One line per change, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._shown: dict[str, tuple[str, str]] = {}
        self._is_first = True
        self._was_ready = False
        self._was_stopping = False

    def show(self, snapshot: Snapshot) -> None:
        """Print what changed since the last call."""
        for view in snapshot.members:
            is_failing = view.state in (State.BACKING_OFF, State.STARTING)
            state = (str(view.state), view.detail if is_failing else "")
            if view.state is not State.WAITING and self._shown.get(view.name) != state:
                self._shown[view.name] = state
                announcement = snapshot.announcements.get(view.name)
                serves = model_names(announcement) if announcement and view.state is State.READY else ""
                note = state[1] or serves
                self.say(f"{view.name} {state[0]}{f' ({note})' if note else ''}")
        if snapshot.is_stopping and not self._was_stopping:
            self.say("draining; Ctrl-C again to stop at once")
        if snapshot.is_ready and not self._was_ready:
            self.say(
                f"ready: {snapshot.gateway_url}/v1 (logs: {snapshot.logs})"
                if self._is_first
                else "ready again"
            )
            self._is_first = False
        self._was_ready, self._was_stopping = snapshot.is_ready, snapshot.is_stopping

    def say(self, line: str) -> None:
        """Print one line of its own."""
        elapsed = time.monotonic() - self._started
        self._console.print(f"[{elapsed:6.1f}s] {line}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is held."""
