"""One run of one workload against a running system: what the client saw, what it cost, what else ran meanwhile."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import pinned
import workloads
from processes import CoreTimes
from systems import Running

__all__ = ["NothingAnswered", "Percentiles", "Run", "Seen", "foreign_seconds", "measure"]

_SETTLE_SECONDS: Final = 10.0
_SETTLED_SHARE: Final = 0.25
_SETTLE_STEP: Final = 0.1


class NothingAnswered(Exception):
    """A run without a single answer. The text is what the client saw first."""


class Percentiles(msgspec.Struct, frozen=True):
    """Of one figure within one run, microseconds."""

    num: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Seen(msgspec.Struct, frozen=True):
    """What the load generator prints. `wrong` answers had the wrong length or no end; `all` includes the warm-up."""

    good: int
    all: int
    failed: int
    wrong: int
    requests_per_s: float
    tokens_per_s: float
    all_tokens: int
    cpu_s: float
    error: str
    latency_us: Percentiles | None
    ttft_us: Percentiles | None
    added_us: Percentiles | None
    to_engine_us: Percentiles | None
    from_engine_us: Percentiles | None
    transit_us: Percentiles | None
    gap_us: Percentiles | None


@dataclass(frozen=True, slots=True)
class Run:
    """One run. CPU is in milliseconds per request and in microseconds per token, by process.

    `gateway_share` and `load_share` are the shares of their cores that the measured system and everything else of the
    benchmark took, `foreign_share` the larger of what others took of either core, the hypervisor included.
    """

    system: str
    workload: str
    seen: Seen
    cpu_ms_per_request: dict[str, float]
    cpu_us_per_token: dict[str, float]
    gateway_share: float
    load_share: float
    foreign_share: float
    peak_rss_mib: float


def measure(running: Running, workload: workloads.Workload) -> Run:
    """Set the pace, let what is left of earlier work end, load, account.

    Raises StartFailed where a process has ended, NothingAnswered where none did but no request was answered.
    """
    ground = running.ground
    running.system.set_pace(ground, workload)
    _settle(running)
    arguments = [
        str(ground.tools / "load"), "--port", str(running.plan.port), "--body", str(running.body_file(workload)),
        *workload.load_arguments(),
    ]  # fmt: skip
    for name, value in running.plan.headers.items():
        arguments += ["--header", f"{name}: {value}"]
    before, own_before = _cores(running), running.cpu_seconds()
    started = time.monotonic()
    done = subprocess.run(
        pinned.command(ground.load_core, arguments, is_urgent=ground.is_urgent),
        stdout=subprocess.PIPE,
        check=True,
    )
    wall = time.monotonic() - started
    own_after, after = running.cpu_seconds(), _cores(running)
    running.check()
    seen = msgspec.json.decode(done.stdout, type=Seen)
    if seen.all == 0:
        raise NothingAnswered(seen.error or "no response")
    used = {name: own_after[name] - own_before[name] for name in own_after}
    gateway = sum(used[process.launch.name] for process in running.gateway)
    behind = sum(used.values()) - gateway + seen.cpu_s
    taken = [
        later.busy + later.stolen - earlier.busy - earlier.stolen
        for earlier, later in zip(before, after, strict=True)
    ]
    return Run(
        system=running.system.name,
        workload=workload.name,
        seen=seen,
        cpu_ms_per_request={name: 1000 * seconds / seen.all for name, seconds in used.items()},
        cpu_us_per_token={name: 1e6 * seconds / seen.all_tokens for name, seconds in used.items()}
        if seen.all_tokens
        else {},
        gateway_share=gateway / wall,
        load_share=behind / wall,
        foreign_share=foreign_seconds(taken, gateway, behind, has_gateway=bool(running.gateway)) / wall,
        peak_rss_mib=sum(process.peak_rss_bytes() for process in running.gateway) / 2**20,
    )


def foreign_seconds(taken: Sequence[float], gateway: float, behind: float, *, has_gateway: bool) -> float:
    """Return how much of the worse core others took. `taken`: seconds that the gateway's and the load's core worked.

    Where both are the same core there is one entry. Without a gateway its core does not matter.
    """
    if len(taken) == 1:
        return max(0.0, taken[0] - gateway - behind)
    return max(0.0, taken[0] - gateway if has_gateway else 0.0, taken[1] - behind)


def _cores(running: Running) -> list[CoreTimes]:
    ground = running.ground
    return [CoreTimes.now(core) for core in dict.fromkeys((ground.gateway_core, ground.load_core))]


def _settle(running: Running) -> None:
    """Return once the gateway is nearly idle: abandoned requests of the run before must not be charged to this one."""
    until = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < until:
        before = sum(process.cpu_seconds() for process in running.gateway)
        time.sleep(_SETTLE_STEP)
        after = sum(process.cpu_seconds() for process in running.gateway)
        if (after - before) / _SETTLE_STEP < _SETTLED_SHARE:
            return
