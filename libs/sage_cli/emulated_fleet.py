"""A simulator's fleet as processes: an llm-worker with the emulated engine for each instance that generates text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sage_cli.exits import Exit, fail
from sage_core import ConfigurationError
from sage_policy import EngineProfile
from sage_simulator.fleet import Fleet
from sage_simulator.fleet_file import find_fleet, read_fleet

__all__ = [
    "EmulatedWorker",
    "emulated_workers",
    "find_emulated_fleet",
    "profiles_toml",
    "refuse_engine_options",
]

_NO_NAME: Final = re.compile(r"[^A-Za-z0-9-]+")
_MAX_GROUP: Final = 40
_MAX_WORKERS: Final = 64
"""Each is a process of its own."""


@dataclass(frozen=True, slots=True)
class EmulatedWorker:
    """One process: its actor id, its profile, and the variables that make it this instance of the fleet."""

    name: str
    profile_name: str
    profile: EngineProfile
    environment: Mapping[str, str]


def find_emulated_fleet(name: str) -> Fleet:
    """Return the fleet file or shipped fleet `name`. Raises ConfigurationError where it has nothing to emulate."""
    fleet = read_fleet(find_fleet(name))
    num_workers = sum(not instance.is_batched for instance in fleet.instances)
    if not 1 <= num_workers <= _MAX_WORKERS:
        raise ConfigurationError(
            f"fleet {fleet.name} has {num_workers} instances of kind generate; expected 1 to {_MAX_WORKERS}"
        )
    return fleet


def emulated_workers(fleet: Fleet, profiles_file: Path) -> tuple[EmulatedWorker, ...]:
    """Return a worker for each instance that generates; `profiles_file` will hold `profiles_toml` of them.

    Instances that run batches and disturbances have no part in it.
    """
    workers = []
    for number, instance in enumerate(fleet.instances):
        if instance.is_batched:
            continue
        group = _NO_NAME.sub("-", instance.group)[:_MAX_GROUP]
        profile_name = f"{group}-{number}"
        environment = {
            "SAGE_LLM_WORKER__ENGINE": "emulated",
            "SAGE_LLM_WORKER__MODEL": "auto",
            "SAGE_LLM_WORKER__SERVED_NAME": instance.pool,
            "SAGE_LLM_WORKER__MAX_IN_FLIGHT": str(instance.max_in_flight),
            "SAGE_LLM_WORKER__EMULATED__PROFILE": profile_name,
            "SAGE_LLM_WORKER__EMULATED__PROFILES_FILE": str(profiles_file),
            "SAGE_LLM_WORKER__EMULATED__NOISE_SIGMA": str(instance.noise_sigma),
        }
        workers.append(
            EmulatedWorker(f"llm-worker-{profile_name}", profile_name, instance.profile, environment)
        )
    return tuple(workers)


def profiles_toml(workers: tuple[EmulatedWorker, ...]) -> str:
    """Return the file of profiles that the workers read."""
    lines = []
    for worker in workers:
        lines.append(f"[profiles.{worker.profile_name}]")
        values = msgspec.structs.asdict(worker.profile)
        del values["description"]
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def refuse_engine_options(model: str | None, engine: str | None, without: tuple[str, ...]) -> None:
    """Fail where other options contradict a fleet."""
    if model is not None or engine is not None:
        fail("--fleet brings its own engines and models; leave out --model and --engine", Exit.USAGE)
    if "llm-worker" in without:
        fail("--fleet starts llm-workers; leave out --without llm-worker", Exit.USAGE)


def _toml(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
