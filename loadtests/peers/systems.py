"""A system to measure: what must be started, where it listens, and how it is told how fast its engine is."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import workloads
from ground import Ground
from processes import Launch, Process, StartFailed, stop_all

__all__ = ["Plan", "Running", "System", "fetch"]

_READY_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one life of a system goes. `launches` start in this order; `port` is where clients connect."""

    launches: list[Launch]
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)


class System(Protocol):
    """One row of the report."""

    @property
    def name(self) -> str:
        """What options and tables call it."""
        ...

    @property
    def note(self) -> str:
        """What it is and how it is configured, in one line."""
        ...

    @property
    def is_slow(self) -> bool:
        """True where high rates and many streams are far beyond it, or beyond what stands for its engine."""
        ...

    @property
    def is_mocked(self) -> bool:
        """True where the mock engine stands behind it."""
        ...

    def plan(self, ground: Ground) -> Plan:
        """Write the files that one life needs, choose ports; starts nothing."""
        ...

    def model(self, workload: workloads.Workload) -> str:
        """Return the model that bodies name."""
        ...

    def unsupported(self, workload: workloads.Workload) -> str:
        """Return why a workload is left out, empty where it is measured."""
        ...

    def set_pace(self, ground: Ground, workload: workloads.Workload) -> None:
        """Tell the engine behind the running system how fast its tokens come."""
        ...


def fetch(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """GET or POST. Raises OSError."""
    head = {"Content-Type": "application/json", **(headers or {})}
    with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=head), timeout=20) as reply:
        content: bytes = reply.read()
        return content


class Running:
    """A system from its start to its end. Used as a context manager; raises StartFailed where it does not come up."""

    def __init__(self, system: System, ground: Ground) -> None:
        self.system = system
        self.ground = ground
        self.processes: list[Process] = []
        self._folder = ground.work / system.name
        self._folder.mkdir(exist_ok=True)

    def __enter__(self) -> Running:
        started = time.monotonic()
        with ExitStack() as undo:
            undo.callback(stop_all, self.processes)
            self.plan = self.system.plan(self.ground)
            if self.system.is_mocked:
                mock = [str(self.ground.tools / "mock_engine"), "--port", str(self.ground.mock_port)]
                self._start(Launch("engine", mock))
                self._until(f"{self.ground.mock_url}/health", None)
            for launch in self.plan.launches:
                self._start(launch)
            chat = workloads.WORKLOADS["chat16-c1"]
            self._until(f"{self.url}{chat.path}", workloads.body(chat, self.system.model(chat)))
            undo.pop_all()
        self.ready_seconds = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        stop_all(self.processes)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://127.0.0.1:{self.plan.port}"

    @property
    def gateway(self) -> list[Process]:
        """The processes that are measured."""
        return [process for process in self.processes if process.launch.is_gateway]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far, by the name of what was launched."""
        return {process.launch.name: process.cpu_seconds() for process in self.processes}

    def body_file(self, workload: workloads.Workload) -> Path:
        """Write the workload's body for this system; return where."""
        path = self._folder / f"{workload.name}.json"
        path.write_bytes(workloads.body(workload, self.system.model(workload)))
        return path

    def check(self) -> None:
        """Raise StartFailed if a process has ended."""
        for process in self.processes:
            process.check()

    def _start(self, launch: Launch) -> None:
        core = self.ground.gateway_core if launch.is_gateway else self.ground.load_core
        log = self._folder / f"{launch.name}.log"
        process = Process(launch, core=core, log=log, is_urgent=self.ground.is_urgent)
        self.processes.append(process)
        process.wait_until_ready(_READY_SECONDS)

    def _until(self, url: str, body: bytes | None) -> None:
        """Ask until there is a good answer."""
        until = time.monotonic() + _READY_SECONDS
        while True:
            try:
                answer = fetch(url, body, self.plan.headers)
                if body is None or json.loads(answer)["choices"][0]["message"]["content"]:
                    return
            except (OSError, ValueError, KeyError) as error:
                if time.monotonic() > until:
                    raise StartFailed(f"{self.system.name} was not ready: {error!r}") from None
            self.check()
            time.sleep(0.1)
