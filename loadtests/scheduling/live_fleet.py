"""A fleet of emulated engines behind a real instance (`sage up --fleet`), and requests of a simulator's workload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import uvloop
from http_load import Outcome, Send, replay

from sage_simulator.workload import Workload
from sage_wire.prefix import BLOCK_BYTES

__all__ = ["MIN_PROMPT_TOKENS", "SHED", "LiveFleet", "LiveRun", "sends_of"]

SAGE = Path(sys.executable).parent / "sage"
CHAT = "/v1/chat/completions"
SHED = 429
CHAT_OVERHEAD_TOKENS = 4
MIN_PROMPT_TOKENS = 20
"""The shortest prompt that has room for its number, and for the line that says how long its answer is."""


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One replay: an outcome per run, how late the client sent (seconds, p99), and the share of all CPUs in use."""

    outcomes: list[Outcome]
    late_p99: float
    cpu_share: float


class LiveFleet:
    """A running `sage up --fleet` with nothing but gateway, scheduler and workers."""

    def __init__(self, fleet_file: Path, policy: str, seed: int) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="sage-live-")
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        self._environment = os.environ | dict.fromkeys(folders, self._home.name)
        self._environment |= {
            "SAGE_SCHEDULER__POLICY": policy,
            "SAGE_SCHEDULER__SEED": str(seed),
            "SAGE_TELEMETRY__SAMPLE_RATIO": "0",
        }
        without = [
            part
            for kind in ("embedding-worker", "operator-worker", "planner")
            for part in ("--without", kind)
        ]
        self._command = [SAGE, "up", "--name", "live", "--port", "0", "--fleet", fleet_file, *without]

    def __enter__(self) -> LiveFleet:
        log = Path(self._home.name) / "up.log"
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        done = subprocess.run(
            [SAGE, "status", "--name", "live", "--wait-ready", "90", "--json"],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = log.read_text(errors="replace")[-3000:]
            self.__exit__()
            raise SystemExit(f"the fleet did not start:\n{done.stderr}{said}")
        status: dict[str, Any] = json.loads(done.stdout)
        address = urlsplit(status["gateway_url"])
        self._host, self._port = address.hostname or "127.0.0.1", address.port or 80
        self._pids = [self._process.pid, os.getpid(), *(actor["pid"] for actor in status["actors"])]
        self._pids += [p.pid for p in psutil.Process(self._process.pid).children(True) if "nats" in p.name()]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._home.cleanup()

    def run(self, sends: list[Send]) -> LiveRun:
        """Send everything at its time and wait for the last answer.

        Raises SystemExit where a request failed for another reason than that the policy refused it (status 429).
        """
        cpu, began = self._cpu_seconds(), time.monotonic()
        outcomes = uvloop.run(replay(self._host, self._port, CHAT, sends, is_stream=True, timeout=600))
        wall = time.monotonic() - began
        failed = [o for o in outcomes if o.status != SHED and not (o.is_done and o.status == 200)]
        if failed:
            raise SystemExit(
                f"{len(failed)} of {len(outcomes)} requests failed; first status {failed[0].status}"
            )
        late = [outcome.sent - outcome.due for outcome in outcomes if outcome.sent is not None]
        share = (self._cpu_seconds() - cpu) / wall / (os.cpu_count() or 1)
        return LiveRun(outcomes, float(np.percentile(late, 99)), share)

    def _cpu_seconds(self) -> float:
        times = [psutil.Process(pid).cpu_times() for pid in self._pids]
        return sum(each.user + each.system for each in times)


def sends_of(workload: Workload) -> list[Send]:
    """Return each run as a chat request: a prompt of exactly its tokens whose blocks are as equal as the run's own.

    Its true length is known to the engine alone. The workload's blocks have to be those of `sage_wire.prefix`.
    """
    sends = []
    for row in range(len(workload)):
        mark = f"\nsage-output-tokens: {workload.output_tokens[row]}"
        num_chars = 4 * (int(workload.prompt_tokens[row]) - CHAT_OVERHEAD_TOKENS) - len(mark)
        blocks = workload.blocks[workload.block_start[row] : workload.block_start[row + 1]]
        text = "".join(map(_block_text, blocks.tolist()))
        text += _filler(f"tail {row}", max(0, num_chars - len(text)))
        content = text[:num_chars] + mark
        assert len(content) == num_chars + len(mark)
        body = {
            "model": workload.pools[workload.pool[row]],
            "messages": [{"role": "user", "content": content}],
            "max_tokens": int(workload.max_tokens[row]),
            "stream": True,
        }
        headers = {
            "x-slo-ttft-ms": f"{workload.ttft_slo[row] * 1000:.3f}",
            "x-slo-tpot-ms": f"{workload.tpot_slo[row] * 1000:.3f}",
            "x-sage-budget-ms": str(int(workload.budget[row] * 1000)),
        }
        sends.append(Send(float(workload.arrival[row]), json.dumps(body).encode(), headers))
    return sends


def _block_text(block: int) -> str:
    return _filler(f"{block:x}", BLOCK_BYTES)


def _filler(word: str, num_chars: int) -> str:
    return (f"{word} " * (num_chars // len(word) + 1))[:num_chars]
