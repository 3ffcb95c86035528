"""What all systems of one benchmark share: tools, folders, cores, and the mock engine's place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sage_bus.testing import free_port

__all__ = ["PEERS", "REPOSITORY", "Ground", "build_tools"]

PEERS: Final = Path(__file__).parent
REPOSITORY: Final = PEERS.parents[1]
_BUILD: Final = REPOSITORY / "build" / "peers"


@dataclass(frozen=True, slots=True)
class Ground:
    """Where things are. The gateway has `gateway_core` to itself, all else shares `load_core`.

    `sage`: the environment that SAGE is installed in, `is_compiled` with its compiled modules.
    `is_urgent`: measured processes take precedence over other work on the machine.
    `sample_ratio`: share of requests that SAGE traces.
    """

    tools: Path
    environments: Path
    sage: Path
    work: Path
    gateway_core: int
    load_core: int
    mock_port: int
    is_urgent: bool
    sample_ratio: float

    @classmethod
    def prepare(cls, *, is_urgent: bool, sample_ratio: float, is_compiled: bool) -> Ground:
        """Make empty folders for this run. The first core is the gateway's, the second one everything else's."""
        cores = sorted(os.sched_getaffinity(0))
        work = _BUILD / "run"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return cls(
            tools=build_tools(),
            environments=_BUILD / "environments",
            sage=_BUILD / "environments" / ("sage" if is_compiled else "sage-interpreted"),
            work=work,
            gateway_core=cores[0],
            load_core=cores[min(1, len(cores) - 1)],
            mock_port=free_port(),
            is_urgent=is_urgent,
            sample_ratio=sample_ratio,
        )

    @property
    def mock_url(self) -> str:
        """Where the mock engine listens."""
        return f"http://127.0.0.1:{self.mock_port}"


def build_tools() -> Path:
    """Build load generator and mocks where they are out of date; return their folder. Raises CalledProcessError."""
    folder = _BUILD / "tools"
    # cmake and ninja come with the development environment.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }
    for command in (
        ["cmake", "-S", str(PEERS / "tools"), "-B", str(folder), "-G", "Ninja"],
        ["cmake", "--build", str(folder)],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return folder
