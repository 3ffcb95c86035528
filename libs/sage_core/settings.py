"""Settings: environment over one TOML file over defaults, validated as a whole, loaded once per process.

One file describes every service, a table each (`[bus]`, `[telemetry]`, `[gateway]`, `[llm_worker]` …). The
environment says the same with `SAGE_<TABLE>__<KEY>`, e.g. `SAGE_GATEWAY__PORT=8081`; lists and tables are
written as JSON. A process reads the tables of its own class; the tables of other services may be present,
an unknown table, key or `SAGE_` variable is refused by name. Nothing here is read twice or changed later.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sage_core.errors import ConfigurationError
from sage_core.paths import INSTANCE_RULE, is_instance_name
from sage_core.ports import NATS_PORT
from sage_core.units import ByteSize, Duration

__all__ = [
    "SECTIONS",
    "BusSettings",
    "Section",
    "ServiceSettings",
    "TelemetrySettings",
    "load_settings",
    "refuse_unknown_variables",
]

SECTIONS: Final = frozenset(
    {
        "actor",
        "bus",
        "embedding_worker",
        "gateway",
        "llm_worker",
        "operator_worker",
        "planner",
        "scheduler",
        "telemetry",
    }
)
"""Every table that the settings file may hold."""

_TOP_LEVEL_VARIABLES: Final = frozenset({"SAGE_CONFIG", "SAGE_INSTANCE"})
_CONTAINERS: Final = {
    "list_type": 'list, e.g. ["a", "b"]',
    "tuple_type": 'list, e.g. ["a", "b"]',
    "dict_type": 'table, e.g. {"key": "value"}',
}
"""What is expected where pydantic found no list or table, by the type of its error."""
_QUOTED: Final = re.compile(r"'([^']*)'")


class Section(BaseModel):
    """Base of one table of the settings file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BusSettings(Section):
    """`[bus]`: how to reach NATS."""

    url: str = Field(
        f"nats://127.0.0.1:{NATS_PORT}", description="NATS server, or several separated by commas."
    )
    nkey_seed_file: Path | None = Field(
        None,
        description="File with the nkey seed of this process's role, as `sage nats credentials` writes it.",
    )
    tls_ca_file: Path | None = Field(
        None, description="PEM bundle that signs the server's certificate; with it, only TLS is spoken."
    )
    tls_cert_file: Path | None = Field(
        None, description="Our own certificate, PEM, where the server asks for one."
    )
    tls_key_file: Path | None = Field(None, description="The key of `tls_cert_file`, PEM.")
    is_provisioned: bool = Field(
        False,
        description="Streams, buckets and consumers were made by `sage nats provision`: nothing is created here, and "
        "a missing one ends the start.",
    )
    connect_timeout: Duration = Field(10.0, description="How long start-up waits for a first connection.")
    max_outbound: int = Field(
        65536, ge=64, description="Messages that may wait to be written before publish refuses."
    )
    max_outbound_bytes: ByteSize = Field(64 * 2**20, description="The same limit in bytes.")


class TelemetrySettings(Section):
    """`[telemetry]`: logs, traces and metrics."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level written."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal."
    )
    otlp_endpoint: str | None = Field(
        None, description="OTLP collector, e.g. http://127.0.0.1:4318; unset: no export."
    )
    otlp_protocol: Literal["http", "grpc"] = Field("http", description="OTLP transport.")
    sample_ratio: float = Field(
        1.0, ge=0.0, le=1.0, description="Share of requests traced; decided at the gateway."
    )
    max_queued_spans: int = Field(
        4096, ge=1, description="Spans that may wait for the collector; more are dropped and counted."
    )
    record_content: bool = Field(
        False, description="Record prompts and answers in spans, the first 8,192 characters of each."
    )
    recent_spans: int = Field(8192, ge=0, description="Spans kept in memory for `sage trace`; 0 keeps none.")
    metrics_host: str = Field("127.0.0.1", description="Address that the Prometheus port listens on.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Prometheus port of this process; 0: none.")


class ActorSettings(Section):
    """`[actor]`: limits of the actor runtime, the same for every kind of actor."""

    max_mailbox: int = Field(1024, ge=1, description="Calls that may wait; more are refused as overloaded.")
    max_slots: int = Field(256, ge=1, description="Handlers that run at once.")
    default_budget: Duration = Field(30.0, gt=0, description="Budget of a call that names none.")
    drain_timeout: Duration = Field(20.0, description="How long a stopping actor finishes what it holds.")
    announce_interval: Duration = Field(1.0, gt=0, description="Time between two announcements of presence.")


class ServiceSettings(BaseSettings):
    """Base of one service's settings; a subclass adds its own table as a field, e.g. `gateway: GatewaySection`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="SAGE_", env_nested_delimiter="__", case_sensitive=False
    )

    instance: str = Field("default", description="Name of the instance whose folders are used.")
    bus: BusSettings = Field(default_factory=lambda: BusSettings())
    telemetry: TelemetrySettings = Field(default_factory=lambda: TelemetrySettings())
    actor: ActorSettings = Field(default_factory=lambda: ActorSettings())

    @field_validator("instance")
    @classmethod
    def _is_instance_name(cls, value: str) -> str:
        if not is_instance_name(value):
            raise ValueError(f"expected {INSTANCE_RULE}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from `load_settings` alone: it has already laid the environment over the file."""
        return (init_settings,)


S = TypeVar("S", bound=ServiceSettings)


def load_settings(
    cls: type[S], config_file: Path | None = None, environ: Mapping[str, str] | None = None
) -> S:
    """Load `cls` from `config_file` (or `$SAGE_CONFIG`) and the environment.

    Raises ConfigurationError with one line per problem that names the key or variable, what was found, what
    was expected, and the file. Callers print it and exit with status 2.
    """
    env = os.environ if environ is None else environ
    path = config_file or (Path(env["SAGE_CONFIG"]) if env.get("SAGE_CONFIG") else None)
    own = set(cls.model_fields)
    values, origin = _read_file(path), {}
    for table in values:
        if table not in SECTIONS and table != "instance":
            raise ConfigurationError(
                f"{path}: unknown table [{table}]; expected one of {', '.join(sorted(SECTIONS))}"
            )
    values = {key: value for key, value in values.items() if key in own}
    for name, keys, value in _read_environment(env, own):
        origin[".".join(keys)] = name
        _place(values, keys, value, name)
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigurationError(_describe(error, path, origin)) from None


def refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """Raise ConfigurationError naming the first `SAGE_` variable in `environ` that belongs to no table."""
    for name in sorted(environ):
        if not name.startswith("SAGE_") or name in _TOP_LEVEL_VARIABLES:
            continue
        keys = name.removeprefix("SAGE_").lower().split("__")
        if keys[0] not in SECTIONS or len(keys) < 2:
            raise ConfigurationError(
                f"unknown environment variable {name}; expected SAGE_CONFIG, SAGE_INSTANCE or SAGE_<TABLE>__<KEY> "
                f"with <TABLE> one of {', '.join(sorted(table.upper() for table in SECTIONS))}"
            )


def _read_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings file {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"settings file {path} is not TOML: {error}") from None


def _read_environment(env: Mapping[str, str], own: set[str]) -> list[tuple[str, list[str], Any]]:
    refuse_unknown_variables(env)
    found: list[tuple[str, list[str], Any]] = []
    for name in sorted(env):
        if name == "SAGE_INSTANCE":
            found.append((name, ["instance"], env[name]))
        elif name.startswith("SAGE_") and name not in _TOP_LEVEL_VARIABLES:
            keys = name.removeprefix("SAGE_").lower().split("__")
            if keys[0] in own:
                found.append((name, keys, _parse_value(env[name])))
    return found


def _parse_value(text: str) -> Any:
    """Lists and tables are written as JSON; everything else stays text for pydantic to convert."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text
    return text


def _place(values: dict[str, Any], keys: list[str], value: Any, name: str) -> None:
    table = values
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigurationError(f"environment variable {name}: {key!r} is a value, not a table")
        table = inner
    table[keys[-1]] = value


def _describe(error: ValidationError, path: Path | None, origin: Mapping[str, str]) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        source = origin.get(key) or (str(path) if path is not None else "defaults")
        if problem["type"] == "extra_forbidden":
            lines.append(f"{source}: unknown key {key!r}")
        else:
            reason = _reason(problem, is_from_environment=key in origin)
            lines.append(f"{source}: {key} = {problem['input']!r}: {reason}")
    return "\n".join(lines)


def _reason(problem: ErrorDetails, *, is_from_environment: bool) -> str:
    container = _CONTAINERS.get(problem["type"])
    if container is not None:
        return f"expected a {'JSON ' if is_from_environment else ''}{container}"
    if problem["type"] == "literal_error":
        accepted = _QUOTED.findall(str(problem.get("ctx", {}).get("expected", "")))
        return f"expected one of {', '.join(accepted)}"
    return problem["msg"].removeprefix("Value error, ")
