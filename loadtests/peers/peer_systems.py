"""The peers: each as its own documentation starts it, one process tree on one core, logs at warning level.

What a peer needs beyond its address is explained beside it. None of them authenticates, but for LiteLLM's master key.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import environments
import workloads
from ground import PEERS, Ground
from processes import Launch
from systems import Plan, fetch

from sage_bus.testing import free_port

__all__ = ["DIRECT", "PEER_SYSTEMS", "Direct", "Dynamo", "MockedPeer"]


def _set_mock_pace(ground: Ground, workload: workloads.Workload) -> None:
    """Tell the mock engine."""
    fetch(f"{ground.mock_url}/_pace?itl_us={workload.gap_us}&ttft_us=0")


@dataclass(frozen=True)
class MockedPeer:
    """A gateway that forwards to an engine by HTTP. `command(ground, port)` starts it.

    `name` is also that of its requirements; `distribution` is the one whose version is reported.
    """

    name: str
    about: str
    distribution: str
    command: Callable[[Ground, int], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    is_slow: bool = False
    is_mocked: bool = True

    @property
    def note(self) -> str:
        """See `System`."""
        return f"{self.distribution} {environments.version(self.name, self.distribution)}; {self.about}"

    def model(self, _: workloads.Workload) -> str:
        """See `System`."""
        return workloads.MODEL

    def unsupported(self, _: workloads.Workload) -> str:
        """See `System`."""
        return ""

    def plan(self, ground: Ground) -> Plan:
        """See `System`."""
        port = free_port()
        launch = Launch("gateway", self.command(ground, port), is_gateway=True, environment=self.environment)
        return Plan([launch], port, self.headers)

    def set_pace(self, ground: Ground, workload: workloads.Workload) -> None:
        """See `System`."""
        _set_mock_pace(ground, workload)


@dataclass(frozen=True)
class Direct:
    """No gateway: load generator and mock engine share a core, so nothing wakes a process on another one."""

    name: str = "direct"
    note: str = "no gateway; load and mock engine on one core, without a wake-up across cores"
    is_slow: bool = False
    is_mocked: bool = True

    def model(self, _: workloads.Workload) -> str:
        """See `System`."""
        return workloads.MODEL

    def unsupported(self, _: workloads.Workload) -> str:
        """See `System`."""
        return ""

    def plan(self, ground: Ground) -> Plan:
        """See `System`."""
        return Plan([], ground.mock_port)

    def set_pace(self, ground: Ground, workload: workloads.Workload) -> None:
        """See `System`."""
        _set_mock_pace(ground, workload)


def _sglang_router(ground: Ground, port: int) -> list[str]:
    python = environments.executable(ground.environments, "sglang-router", "python")
    return [
        python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", ground.mock_url, "--log-level", "warn", "--prometheus-port", str(free_port()),
    ]  # fmt: skip


def _smg(ground: Ground, port: int) -> list[str]:
    return [
        environments.executable(ground.environments, "smg", "smg"), "launch", "--host", "127.0.0.1",
        "--port", str(port), "--worker-urls", ground.mock_url, "--log-level", "warn",
        "--prometheus-port", str(free_port()),
    ]  # fmt: skip


def _vllm_router(ground: Ground, port: int) -> list[str]:
    return [
        environments.executable(ground.environments, "vllm-router", "vllm-router"), "--host", "127.0.0.1",
        "--port", str(port), "--worker-urls", ground.mock_url, "--log-level", "warning",
        "--prometheus-port", str(free_port()), "--max-concurrent-requests", "8192",
    ]  # fmt: skip


_LITELLM_KEY: Final = "sk-bench-7f3a9c1e5b2d4860a1c3"
_LITELLM_CONFIG: Final = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: hosted_vllm/{model}
      api_base: {url}/v1
      api_key: sk-none
litellm_settings:
  request_timeout: 600
  set_verbose: false
  num_retries: 0
  telemetry: false
"""


def _litellm(ground: Ground, port: int) -> list[str]:
    config = ground.work / "litellm" / "config.yaml"
    config.write_text(_LITELLM_CONFIG.format(model=workloads.MODEL, url=ground.mock_url), "utf-8")
    return [
        environments.executable(ground.environments, "litellm", "litellm"), "--host", "127.0.0.1",
        "--port", str(port), "--config", str(config), "--num_workers", "1",
    ]  # fmt: skip


@dataclass
class Dynamo:
    """Dynamo's frontend. It speaks to its own workers alone, so a Python worker stands for the engine.

    It tokenizes prompts and detokenizes answers, which the others leave to the engine; tokens carry no stamps.
    """

    name: str = "dynamo"
    is_slow: bool = True
    is_mocked: bool = False

    @property
    def note(self) -> str:
        """See `System`."""
        return (
            f"ai-dynamo {environments.version(self.name, 'ai-dynamo')}; Rust frontend with round-robin, file discovery "
            "and TCP request plane; it tokenizes and detokenizes; a Python worker on the other core stands for the "
            "engine, which limits it without delay: see its CPU per request instead"
        )

    def model(self, workload: workloads.Workload) -> str:
        """See `System`."""
        return "mock-embed" if workload.num_texts else workloads.MODEL

    def unsupported(self, _: workloads.Workload) -> str:
        """See `System`."""
        return ""

    def plan(self, ground: Ground) -> Plan:
        """See `System`. Makes the model folder at the first time."""
        folder, port = ground.work / self.name, free_port()
        python = environments.executable(ground.environments, self.name, "python")
        model, pace = folder / "model", folder / "pace"
        pace.write_text("0")
        if not model.exists():
            text = folder / "text.txt"
            text.write_bytes(workloads.body(workloads.WORKLOADS["chat16-c1"], workloads.MODEL))
            subprocess.run([python, PEERS / "dynamo" / "model.py", model, text], check=True)
        shutil.rmtree(folder / "discovery", ignore_errors=True)
        environment = {
            "DYN_FILE_KV": str(folder / "discovery"),
            "DYN_LOG": "warn",
            "DYN_SELF_HOST_METADATA": "0",
        }
        worker = [python, str(PEERS / "dynamo" / "worker.py"), str(model), str(pace)]
        frontend = [
            python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port),
            "--discovery-backend", "file", "--request-plane", "tcp",
        ]  # fmt: skip
        return Plan(
            [
                Launch("engine", worker, environment=environment, ready_text="worker ready"),
                Launch("gateway", frontend, is_gateway=True, environment=environment),
            ],
            port,
        )

    def set_pace(self, ground: Ground, workload: workloads.Workload) -> None:
        """See `System`. The worker looks every 50 ms, which is less than the time until the load begins."""
        pace = ground.work / self.name / "pace"
        written = pace.with_suffix(".new")
        written.write_text(str(workload.gap_us))
        written.replace(pace)


DIRECT: Final = Direct()
PEER_SYSTEMS: Final = (
    MockedPeer("sglang-router", "Rust; default policy (cache_aware)", "sglang-router", _sglang_router),
    MockedPeer("smg", "Rust; defaults", "smg", _smg),
    MockedPeer(
        "vllm-router",
        "Rust; default policy (cache_aware), --max-concurrent-requests 8192",
        "vllm-router",
        _vllm_router,
    ),
    MockedPeer(
        "litellm",
        "Python; proxy with one worker and a master key, no database, LITELLM_MODE=PRODUCTION, hosted_vllm provider",
        "litellm",
        _litellm,
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_MASTER_KEY": _LITELLM_KEY,
        },
        headers={"Authorization": f"Bearer {_LITELLM_KEY}"},
        is_slow=True,
    ),
    Dynamo(),
)
