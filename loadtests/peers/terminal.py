"""What a run prints: a line per run, and a table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from hops import Hop
from measuring import Run
from summary import Summary
from workloads import Workload

if TYPE_CHECKING:
    from systems import System

__all__ = ["hops", "line", "listing", "table"]


def line(run: Run) -> str:
    """Return one run on one line."""
    seen = run.seen
    parts = [f"{run.workload:12}"]
    parts.append(
        f"{seen.tokens_per_s:9,.0f} tok/s" if seen.tokens_per_s else f"{seen.requests_per_s:9,.0f} req/s"
    )
    if seen.ttft_us is not None:
        parts.append(f"ttft {_pair(seen.ttft_us.p50, seen.ttft_us.p99)}")
    elif seen.latency_us is not None:
        parts.append(f"latency {_pair(seen.latency_us.p50, seen.latency_us.p99)}")
    if seen.added_us is not None:
        parts.append(f"added {_pair(seen.added_us.p50, seen.added_us.p99)}")
    if seen.transit_us is not None:
        parts.append(f"transit {_pair(seen.transit_us.p50, seen.transit_us.p99)}")
    parts.append(
        f"cores {run.gateway_share:4.0%} {run.load_share:4.0%}, foreign {run.foreign_share:.0%}; CPU ms/req "
        + ", ".join(f"{name} {value:.3f}" for name, value in run.cpu_ms_per_request.items())
    )
    if seen.failed or seen.wrong:
        parts.append(f"FAILED {seen.failed} WRONG {seen.wrong}: {seen.error}")
    return "  ".join(parts)


def table(found: Summary) -> str:
    """Return all figures as aligned text."""
    lines = [
        f"{'system':15} {'workload':12} {'req/s':>9} {'tokens/s':>10} {'latency ms':>15} {'added ms':>15} "
        f"{'transit ms':>15} {'cores':>9} {'CPU ms per request by process'}"
    ]
    for system, by_workload in found.items():
        for workload, figures in by_workload.items():
            cpu = ", ".join(f"{name} {value:.3f}" for name, value in figures.cpu_ms_per_request.items())
            lines.append(
                f"{system:15} {workload:12} {figures.requests_per_s:9,.0f} {figures.tokens_per_s:10,.0f} "
                f"{_cell(figures.latency_p50_ms, figures.latency_p99_ms)} "
                f"{_cell(figures.added_p50_ms, figures.added_p99_ms)} "
                f"{_cell(figures.transit_p50_ms, figures.transit_p99_ms)} "
                f"{figures.gateway_share:4.0%} {figures.load_share:4.0%} {cpu}"
            )
    return "\n".join(lines)


def hops(found: Mapping[str, Sequence[Hop]]) -> str:
    """Return where SAGE's time goes as aligned text."""
    lines = []
    for system, parts in found.items():
        lines.append(f"{system}: one request at a time, microseconds, p50 and p90")
        lines += [f"  {part.title:55} {part.p50_us:8,.0f} {part.p90_us:8,.0f}" for part in parts]
    return "\n".join(lines)


def listing(systems: Iterable[System], workloads: Iterable[Workload]) -> str:
    """Return the names that options take."""
    lines = ["systems:"]
    lines += [f"  {system.name:15} {system.note}" for system in systems]
    lines.append("workloads:")
    lines += [f"  {workload.name:15} {workload.title}" for workload in workloads]
    return "\n".join(lines)


def _pair(first: float, second: float) -> str:
    return f"{first / 1000:.2f}/{second / 1000:.2f} ms"


def _cell(first: float | None, second: float | None) -> str:
    if first is None or second is None:
        return f"{'-':>15}"
    return f"{first:.2f}/{second:.2f}".rjust(15)
