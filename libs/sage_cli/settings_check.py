"""The settings of every service, loaded as each service will load them, so that mistakes show before a start."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel

from sage_cli.members import KINDS
from sage_core import ConfigurationError, ServiceSettings, load_settings
from sage_core.ports import GATEWAY_PORT

__all__ = ["check_services", "gateway_address", "load_all", "shown"]

_CLASSES: Final = {
    "gateway": ("sage_gateway.settings", "GatewaySettings"),
    "planner": ("sage_planner.settings", "PlannerSettings"),
    "scheduler": ("sage_scheduler.settings", "SchedulerSettings"),
    "llm-worker": ("sage_llm_worker.settings", "LlmWorkerSettings"),
    "embedding-worker": ("sage_embedding_worker.settings", "EmbeddingWorkerSettings"),
    "operator-worker": ("sage_operator_worker.settings", "OperatorWorkerSettings"),
}


def load_all(
    environ: Mapping[str, str] = os.environ, kinds: tuple[str, ...] = KINDS
) -> dict[str, ServiceSettings]:
    """Return the settings of each kind. Raises ConfigurationError naming every problem once, with its source."""
    found: dict[str, ServiceSettings] = {}
    problems: dict[str, None] = {}
    for kind in kinds:
        module, name = _CLASSES[kind]
        cls: type[ServiceSettings] = getattr(importlib.import_module(module), name)
        try:
            found[kind] = load_settings(cls, None, environ)
        except ConfigurationError as error:
            problems.update(dict.fromkeys(_sourced(line, environ) for line in error.message.splitlines()))
    if problems:
        raise ConfigurationError("\n".join(problems))
    return found


def _sourced(line: str, environ: Mapping[str, str]) -> str:
    """Name the variable where one that holds a whole table or list set what `line` is about."""
    _, _, rest = line.partition(": ")
    key = rest.removeprefix("unknown key ").partition(" = ")[0].strip("'")
    parts = key.split(".")
    for length in range(len(parts) - 1, 1, -1):
        variable = "SAGE_" + "__".join(parts[:length]).upper()
        if environ.get(variable, "")[:1] in ("{", "["):
            return f"{variable}: {rest}"
    return line


def check_services(settings: Mapping[str, ServiceSettings]) -> None:
    """Check what `settings` point at as the services will: keys, pipelines, the emulated engine's profile, the policy.

    Raises ConfigurationError naming every problem.
    """
    from sage_gateway.access import open_ring
    from sage_gateway.settings import GatewaySettings
    from sage_llm_worker.profiles import load_profile
    from sage_llm_worker.settings import LlmWorkerSettings
    from sage_planner.library import load_library
    from sage_planner.settings import PlannerSettings
    from sage_scheduler.policies import policy_of
    from sage_scheduler.settings import SchedulerSettings

    problems: list[str] = []
    for loaded in settings.values():
        try:
            if isinstance(loaded, GatewaySettings):
                open_ring(loaded.gateway)
            elif isinstance(loaded, PlannerSettings):
                load_library(loaded.planner.pipelines_dir)
            elif isinstance(loaded, LlmWorkerSettings):
                emulated = loaded.llm_worker.emulated
                load_profile(emulated.profile, emulated.profiles_file)
            elif isinstance(loaded, SchedulerSettings):
                policy_of(loaded.scheduler)
        except ConfigurationError as error:
            problems += error.message.splitlines()
    if problems:
        raise ConfigurationError("\n".join(problems))


def gateway_address(settings: Mapping[str, ServiceSettings], *, is_chosen: bool) -> tuple[str, int, bool]:
    """Return (host, port, whether somebody asked for this port) of the gateway."""
    loaded = settings.get("gateway")
    section = getattr(loaded, "gateway", None)
    host = getattr(section, "host", "127.0.0.1")
    port = getattr(section, "port", GATEWAY_PORT)
    return host, port, is_chosen or port != GATEWAY_PORT


def shown(settings: Mapping[str, ServiceSettings]) -> dict[str, dict[str, object]]:
    """Return every table once, with the values in force, as JSON-compatible values."""
    tables: dict[str, dict[str, object]] = {}
    for loaded in settings.values():
        for table in type(loaded).model_fields:
            section = getattr(loaded, table)
            if isinstance(section, BaseModel):
                tables.setdefault(table, section.model_dump(mode="json"))
    return dict(sorted(tables.items()))
