"""SAGE as it is measured: its gateway in front of a mock of all behind it, and all of it with emulated engines."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final

import workloads
from ground import PEERS, Ground
from nats_text import NatsText
from own_environment import sage_python
from processes import Launch
from systems import Plan

from sage_bus.server_config import render, server_binary
from sage_bus.testing import free_port

__all__ = ["SAGE_SYSTEMS", "Bus", "SageCore", "SageWhole"]

_PACED_MODEL: Final = "mock-model-paced"
_MAX_SEQUENCES: Final = "512"
_NATS: Final = "nats-server"


@dataclass(frozen=True, slots=True)
class Bus:
    """Where one life's nats-server listens."""

    port: int
    token: str

    @property
    def url(self) -> str:
        """As `SAGE_BUS__URL` takes it."""
        return f"nats://{self.token}@127.0.0.1:{self.port}"


@dataclass
class SageCore:
    """The gateway alone on its core, as shipped; nats-server and `mock_pool` are on the other one."""

    name: str = "sage-core"
    note: str = (
        "SAGE's gateway with a key, limits, trace header and metrics on; nats-server and a C++ mock of scheduler and "
        "worker behind it on the other core"
    )
    quota: str = ""
    """Lines of the keys file that limit the key."""
    only: frozenset[str] = frozenset()
    """Workloads that it is measured under; empty: all."""
    is_slow: bool = False
    is_mocked: bool = False
    bus: Bus = field(default_factory=lambda: Bus(free_port(), secrets.token_hex(8)))

    def model(self, _: workloads.Workload) -> str:
        """See `System`."""
        return workloads.MODEL

    def unsupported(self, workload: workloads.Workload) -> str:
        """See `System`."""
        return (
            ""
            if not self.only or workload.name in self.only
            else "the quota makes no difference that others miss"
        )

    def plan(self, ground: Ground) -> Plan:
        """See `System`."""
        self.bus = Bus(free_port(), secrets.token_hex(8))
        pool = [
            str(ground.tools / "mock_pool"), "--port", str(self.bus.port), "--token", self.bus.token,
            "--model", workloads.MODEL,
        ]  # fmt: skip
        return _plan(self.name, ground, self.bus, [Launch("mock-pool", pool)], self.quota)

    def set_pace(self, _: Ground, workload: workloads.Workload) -> None:
        """See `System`."""
        with NatsText(self.bus.port, self.bus.token) as nats:
            nats.publish("bench.pace", f"itl_us={workload.gap_us} ttft_us=0".encode())


@dataclass
class SageWhole:
    """Gateway on its core; nats-server, scheduler and two emulated engines on the other one."""

    name: str = "sage"
    note: str = (
        "all of SAGE: gateway as in sage-core; nats-server, scheduler and llm-workers with the emulated engine, "
        "without delay or a token every 10 ms, on the other core"
    )
    is_slow: bool = False
    is_mocked: bool = False
    bus: Bus = field(default_factory=lambda: Bus(free_port(), secrets.token_hex(8)))

    def model(self, workload: workloads.Workload) -> str:
        """See `System`."""
        return _PACED_MODEL if workload.gap_us else workloads.MODEL

    def unsupported(self, workload: workloads.Workload) -> str:
        """See `System`."""
        return "an embedding model would be what is measured" if workload.num_texts else ""

    def plan(self, ground: Ground) -> Plan:
        """See `System`."""
        self.bus = Bus(free_port(), secrets.token_hex(8))
        environment = _environment(self.name, ground, self.bus)
        scheduler = [sage_python(ground.sage), "-m", "sage_scheduler", "--id", "scheduler"]
        return _plan(
            self.name,
            ground,
            self.bus,
            [
                Launch("scheduler", scheduler, environment=environment),
                _worker(ground, "worker", workloads.MODEL, "zero", environment),
                _worker(ground, "paced-worker", _PACED_MODEL, "paced", environment),
            ],
        )

    def set_pace(self, _: Ground, workload: workloads.Workload) -> None:
        """The model that the body names decides."""


def _worker(ground: Ground, name: str, model: str, profile: str, environment: dict[str, str]) -> Launch:
    settings = {
        "SAGE_LLM_WORKER__ENGINE": "emulated",
        "SAGE_LLM_WORKER__SERVED_NAME": model,
        "SAGE_LLM_WORKER__EMULATED__PROFILE": profile,
        "SAGE_LLM_WORKER__MAX_SEQUENCES": _MAX_SEQUENCES,
    }
    command = [sage_python(ground.sage), str(PEERS / "stamping_worker.py"), "--id", name]
    return Launch(name, command, environment=environment | settings)


def _plan(name: str, ground: Ground, bus: Bus, behind: list[Launch], quota: str = "") -> Plan:
    folder = ground.work / name
    config = folder / "nats.conf"
    store = folder / "jetstream"
    text = render(port=bus.port, store_dir=store) + f'\nauthorization {{\n  token: "{bus.token}"\n}}\n'
    config.write_text(text, "utf-8")
    nats = Launch(_NATS, [str(server_binary()), "--config", str(config)], ready_text="Server is ready")
    key, port = f"sk-{secrets.token_hex(16)}", free_port()
    keys = folder / "keys.toml"
    keys.touch(0o600)
    hashed = hashlib.sha256(key.encode()).hexdigest()
    keys.write_text(
        f'[keys.bench]\nsecrets = [{{ sha256 = "{hashed}" }}]\nmodels = ["mock-*"]\n{quota}', "utf-8"
    )
    settings = {"SAGE_GATEWAY__PORT": str(port), "SAGE_GATEWAY__KEYS_FILE": str(keys)}
    gateway = Launch(
        "gateway",
        [sage_python(ground.sage), "-m", "sage_gateway", "--id", "gateway"],
        is_gateway=True,
        environment=_environment(name, ground, bus) | settings,
    )
    return Plan([nats, *behind, gateway], port, {"Authorization": f"Bearer {key}"})


def _environment(name: str, ground: Ground, bus: Bus) -> dict[str, str]:
    folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
    return dict.fromkeys(folders, str(ground.work / name)) | {
        "SAGE_INSTANCE": f"bench-{name}",
        "SAGE_BUS__URL": bus.url,
        "SAGE_TELEMETRY__SAMPLE_RATIO": str(ground.sample_ratio),
    }


_QUOTA: Final = SageCore(
    name="sage-core-quota",
    note="sage-core with a key whose requests, tokens and concurrency are counted, exactly and for all gateways",
    quota="rpm = 100000000\ntpm = 100000000000\nconcurrency = 100000\n",
    only=frozenset({"chat16-c1", "chat16-c64", "paced-c64"}),
)
SAGE_SYSTEMS: Final = (SageCore(), _QUOTA, SageWhole())
