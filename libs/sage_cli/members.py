"""The processes of one instance: what each is called, how it is started, in which order it starts and stops."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sage_cli import child
from sage_cli.supervision import Member
from sage_core import ConfigurationError

if TYPE_CHECKING:
    from sage_cli.emulated_fleet import EmulatedWorker

__all__ = [
    "BUS",
    "KINDS",
    "LLM_WORKER",
    "Choices",
    "actor_command",
    "actor_environment",
    "check_kinds",
    "in_own_words",
    "kinds_without",
    "members",
]

BUS: Final = "nats-server"
LLM_WORKER: Final = "llm-worker"

_STOP_STAGES: Final = {
    "gateway": 0,
    "planner": 1,
    "llm-worker": 2,
    "embedding-worker": 2,
    "operator-worker": 2,
    "scheduler": 3,
    BUS: 4,
}
"""Who gives out work stops before who does it; the bus goes last."""

KINDS: Final = ("gateway", "planner", "scheduler", "llm-worker", "embedding-worker", "operator-worker")
"""Every kind of actor, in the order in which a request meets them."""


_OPTIONS: Final = {
    "SAGE_GATEWAY__PORT": "port",
    "SAGE_LLM_WORKER__MODEL": "model",
    "SAGE_LLM_WORKER__ENGINE": "engine",
    "SAGE_EMBEDDING_WORKER__MODELS": "embedding_model",
}
"""Variables that `actor_environment` sets from the field of `Choices` named here."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line of `sage up` overrides; None leaves it to the environment and the settings file."""

    model: str | None = None
    engine: str | None = None
    embedding_model: str | None = None
    port: int | None = None
    config: Path | None = None
    without: tuple[str, ...] = ()
    fleet: str | None = None


def kinds_without(without: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kinds to start. Raises ConfigurationError for a kind that does not exist."""
    check_kinds("--without", without)
    return tuple(kind for kind in KINDS if kind not in without)


def check_kinds(option: str, kinds: Iterable[str]) -> list[str]:
    """Return `kinds`, given as `option`. Raises ConfigurationError for a kind that does not exist."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigurationError(f"{option} is {kind!r}; expected one of {', '.join(KINDS)}")
    return list(kinds)


def members(kinds: tuple[str, ...], workers: tuple[EmulatedWorker, ...] = ()) -> tuple[Member, ...]:
    """Return what the supervision keeps running: the bus first, then all actors at once.

    An actor is called as its kind, as there is one of each; emulated `workers` stand in for the one llm-worker.
    """
    names: dict[str, tuple[str, ...]] = {kind: (kind,) for kind in kinds}
    if workers:
        names[LLM_WORKER] = tuple(worker.name for worker in workers)
    return (
        Member(BUS, 0, _STOP_STAGES[BUS]),
        *(Member(name, 1, _STOP_STAGES[kind]) for kind in names for name in names[kind]),
    )


def actor_command(kind: str, actor_id: str) -> list[str]:
    """Return how an actor is started as a child of this process."""
    module = "sage_" + kind.replace("-", "_")
    arguments = [sys.executable, "-m", module, "--id", actor_id, "--parent-pid", str(os.getpid())]
    return child.command(os.getpid(), arguments)


def actor_environment(
    environ: Mapping[str, str], *, name: str, bus_url: str, gateway_port: int | None, choices: Choices
) -> dict[str, str]:
    """Return the environment of every actor: ours, with the command line's choices laid over it.

    The bus URL carries a secret; an environment is readable by its own user alone, an argument list by everybody.
    """
    overrides: dict[str, str | None] = {
        "SAGE_INSTANCE": name,
        "SAGE_BUS__URL": bus_url,
        "SAGE_GATEWAY__PORT": str(gateway_port) if gateway_port is not None else None,
        "SAGE_LLM_WORKER__MODEL": choices.model,
        "SAGE_LLM_WORKER__ENGINE": choices.engine,
        "SAGE_EMBEDDING_WORKER__MODELS": _json_list(choices.embedding_model),
        "SAGE_CONFIG": str(choices.config.resolve()) if choices.config is not None else None,
        "PYTHONUNBUFFERED": "1",
    }
    return {**environ, **{key: value for key, value in overrides.items() if value is not None}}


def in_own_words(message: str, choices: Choices) -> str:
    """Return the lines of `message` about variables that `choices` set, in words of the options that did."""
    lines = []
    for line in message.splitlines():
        variable, _, rest = line.partition(": ")
        option = _OPTIONS.get(variable)
        value = getattr(choices, option) if option is not None else None
        if option is None or value is None:
            lines.append(line)
            continue
        reason = rest.partition(" = ")[2]
        reason = reason.removeprefix(repr([value])).removeprefix(repr(value)).removeprefix(": ")
        lines.append(f"--{option.replace('_', '-')} is {value!r}; {reason}")
    return "\n".join(lines)


def _json_list(value: str | None) -> str | None:
    return None if value is None else json.dumps([value])
