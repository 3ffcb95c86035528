"""Replays a scheduler's event log through a policy made anew: every command must come out as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sage_core import BadRequest, ConfigurationError
from sage_policy import Command, Policy, make_policy
from sage_policy.event_log import Difference, EventLog, LogHeader, read_log, replay

__all__ = ["Replayed", "difference_text", "replay_file"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave. `num_events` are those of the whole log; `difference` is the first one, if any."""

    log: EventLog
    num_events: int
    difference: Difference | None


def replay_file(path: Path) -> Replayed:
    """Replay the log in `path`. Raises ConfigurationError naming the file where it cannot be read or replayed."""
    try:
        log = read_log(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; expected an event log") from None
    except BadRequest as error:
        raise ConfigurationError(f"{path}: {error.message}") from None
    try:
        difference = replay(log, _make)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.message}") from None
    return Replayed(log, len(log.records), difference)


def difference_text(difference: Difference) -> str:
    """Return a difference for a reader: where, the event, and the commands side by side."""
    lines = [
        f"record {difference.index} differs, at {difference.record.now:.6f} s",
        f"  event     {difference.record.event}",
    ]
    lines += _commands("recorded", difference.recorded)
    lines += _commands("replayed", difference.replayed)
    return "\n".join(lines)


def _make(header: LogHeader) -> Policy:
    return make_policy(
        header.policy,
        max_queued=header.max_queued,
        seed=header.seed,
        classes=header.classes or None,
        **header.weights,
    )


def _commands(title: str, commands: list[Command]) -> list[str]:
    if not commands:
        return [f"  {title}  no command"]
    return [f"  {title}  {command}" for command in commands]
