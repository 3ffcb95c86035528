"""Replays a scheduler's event log through a policy made anew: every command must come out as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sage_core import BadRequest, ConfigurationError
from sage_policy import Command, Policy, make_policy
from sage_policy.event_log import Difference, EventLog, LogHeader, read_log, replay
from sage_policy.python_policy import GuardedPolicy
from sage_policy.user_policy import is_user_policy

__all__ = ["Replayed", "difference_text", "replay_file"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay gave. `num_events` are those of the whole log; `difference` is the first one, if any."""

    log: EventLog
    num_events: int
    difference: Difference | None


def replay_file(path: Path, policy: str | None = None) -> Replayed:
    """Replay the log in `path`. Raises ConfigurationError naming the file where it cannot be read or replayed.

    A log may come from anybody: Python code is run only from the file that the user names in `policy`.
    """
    try:
        log = read_log(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; expected an event log") from None
    except BadRequest as error:
        raise ConfigurationError(f"{path}: {error.message}") from None
    recorded = log.header.policy
    if policy is None and is_user_policy(recorded):
        raise ConfigurationError(
            f"{path}: recorded with the Python policy {recorded!r}, whose code is not run on the word of a log; "
            f"name the file with --policy FILE.py:CLASS"
        )
    if policy is not None and not (is_user_policy(policy) and is_user_policy(recorded)):
        raise ConfigurationError(
            f"{path}: recorded with policy {recorded!r}; --policy {policy} is for logs of Python policies, "
            f"as FILE.py:CLASS"
        )
    try:
        difference = replay(log, lambda header: _make(header, policy or recorded))
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


def _make(header: LogHeader, policy: str) -> Policy:
    return GuardedPolicy(
        make_policy(
            policy,
            max_queued=header.max_queued,
            seed=header.seed,
            classes=header.classes or None,
            **header.weights,
        )
    )


def _commands(title: str, commands: list[Command]) -> list[str]:
    if not commands:
        return [f"  {title}  no command"]
    return [f"  {title}  {command}" for command in commands]
