"""Runs turned into the figures of the report, and figures into verdicts on what was aimed for. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from measuring import Percentiles, Run

__all__ = ["Aim", "Figures", "Summary", "aims", "figures", "summarise"]

LOAD_LIMIT: Final = 0.93
"""From this share of its core on, the load side may be what limits a rate."""
GATEWAY_LIMIT: Final = 0.93


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the runs of one system under one workload. Milliseconds and MiB; None where there is no such figure.

    `added_*`: request's way to the engine plus the first token's way back, without the time the engine held it.
    `transit_*`: each token's way from engine to client. `rates`: of the runs, tokens/s of streams, else requests/s.
    """

    requests_per_s: float
    tokens_per_s: float
    rates: list[float] = []
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    added_p50_ms: float | None = None
    added_p99_ms: float | None = None
    transit_p50_ms: float | None = None
    transit_p99_ms: float | None = None
    gap_p50_ms: float | None = None
    gap_p99_ms: float | None = None
    cpu_ms_per_request: dict[str, float] = {}
    cpu_us_per_token: dict[str, float] = {}
    gateway_share: float = 0.0
    load_share: float = 0.0
    peak_rss_mib: float = 0.0
    max_foreign_share: float = 0.0
    num_failed: int = 0
    num_wrong: int = 0
    error: str = ""

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rates."""
        return (max(self.rates) - min(self.rates)) / statistics.median(self.rates) if any(self.rates) else 0.0

    @property
    def is_load_bound(self) -> bool:
        """True where the load side was at its limit and the gateway was not: the rate is a lower bound."""
        return self.load_share > LOAD_LIMIT and self.gateway_share < GATEWAY_LIMIT


Summary = Mapping[str, Mapping[str, Figures]]
"""By system, then by workload."""


class Aim(msgspec.Struct, frozen=True):
    """Something that was aimed for. `is_met` is None where it was not measured; `limit`: what stands in its way."""

    text: str
    found: str
    is_met: bool | None
    limit: str = ""


def figures(runs: Sequence[Run]) -> Figures:
    """Return the medians of `runs`, all of one system and workload; at least one."""

    def of(pick: Callable[[Run], Percentiles | None], name: str) -> float | None:
        found = [getattr(percentiles, name) for run in runs if (percentiles := pick(run)) is not None]
        return statistics.median(found) / 1000 if found else None

    return Figures(
        requests_per_s=statistics.median(run.seen.requests_per_s for run in runs),
        tokens_per_s=statistics.median(run.seen.tokens_per_s for run in runs),
        rates=[run.seen.tokens_per_s or run.seen.requests_per_s for run in runs],
        latency_p50_ms=of(lambda run: run.seen.latency_us, "p50"),
        latency_p99_ms=of(lambda run: run.seen.latency_us, "p99"),
        ttft_p50_ms=of(lambda run: run.seen.ttft_us, "p50"),
        ttft_p99_ms=of(lambda run: run.seen.ttft_us, "p99"),
        added_p50_ms=of(lambda run: run.seen.added_us, "p50"),
        added_p99_ms=of(lambda run: run.seen.added_us, "p99"),
        transit_p50_ms=of(lambda run: run.seen.transit_us, "p50"),
        transit_p99_ms=of(lambda run: run.seen.transit_us, "p99"),
        gap_p50_ms=of(lambda run: run.seen.gap_us, "p50"),
        gap_p99_ms=of(lambda run: run.seen.gap_us, "p99"),
        cpu_ms_per_request=_medians(run.cpu_ms_per_request for run in runs),
        cpu_us_per_token=_medians(run.cpu_us_per_token for run in runs),
        gateway_share=statistics.median(run.gateway_share for run in runs),
        load_share=statistics.median(run.load_share for run in runs),
        peak_rss_mib=max(run.peak_rss_mib for run in runs),
        max_foreign_share=max(run.foreign_share for run in runs),
        num_failed=sum(run.seen.failed for run in runs),
        num_wrong=sum(run.seen.wrong for run in runs),
        error=next((run.seen.error for run in runs if run.seen.error), ""),
    )


def summarise(runs: Iterable[Run]) -> dict[str, dict[str, Figures]]:
    """Group runs by system and workload, in the order of their first run."""
    grouped: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        grouped.setdefault(run.system, {}).setdefault(run.workload, []).append(run)
    return {
        system: {workload: figures(found) for workload, found in by_workload.items()}
        for system, by_workload in grouped.items()
    }


def aims(summary: Summary) -> list[Aim]:
    """Return what was aimed for, each with what was found."""
    return [_requests_aim(summary), _tokens_aim(summary), *_added_aims(summary)]


def _requests_aim(summary: Summary) -> Aim:
    text = "the gateway core answers at least 1.5 times the requests/s of sglang-router, chat at c=64"
    own, other = _find(summary, "sage-core", "chat16-c64"), _find(summary, "sglang-router", "chat16-c64")
    if own is None or other is None:
        return Aim(text, "not measured", None)
    ratio = own.requests_per_s / other.requests_per_s
    found = f"{own.requests_per_s:,.0f} to {other.requests_per_s:,.0f}: {ratio:.2f} times"
    cpu = own.cpu_ms_per_request.get("gateway", 0.0)
    limit = (
        f"{cpu * 1000:.0f} µs of the core per request; {cpu * 1000 * ratio / 1.5:.0f} would do it. A request crosses "
        "the bus, so it is encoded, followed and decoded once more than in a router that calls its engines by HTTP"
    )
    return Aim(text, found, ratio >= 1.5, limit if ratio < 1.5 else "")


def _tokens_aim(summary: Summary) -> Aim:
    text = "the gateway core passes on more SSE tokens/s than every peer, 64 streams without delay"
    own = _find(summary, "sage-core", "stream-c64")
    peers = {
        name: figures
        for name in summary
        if name != "direct" and not name.startswith("sage")
        if (figures := _find(summary, name, "stream-c64")) is not None
    }
    if own is None or not peers:
        return Aim(text, "not measured", None)
    name, best = max(peers.items(), key=lambda peer: peer[1].tokens_per_s)
    found = f"{own.tokens_per_s:,.0f}; the best peer, {name}, {best.tokens_per_s:,.0f}"
    if best.is_load_bound:
        found += ", with the load side at its limit"
    return Aim(text, found, own.tokens_per_s > best.tokens_per_s)


def _added_aims(summary: Summary) -> list[Aim]:
    own, alone = _find(summary, "sage", "paced-c64"), _find(summary, "sage", "chat16-c1")
    p50, p99 = (None, None) if own is None else (own.added_p50_ms, own.added_p99_ms)
    limit = ""
    if (
        own is not None
        and alone is not None
        and own.transit_p50_ms is not None
        and alone.added_p50_ms is not None
    ):
        limit = (
            f"four processes wake one after the other: {alone.added_p50_ms:.2f} ms on an idle system, parts below. At "
            "64 streams each of them first does what it has begun for the others, whose tokens come every 10 ms "
            "together: "
            f"the way of a token alone takes {own.transit_p50_ms:.2f} ms"
        )
    return [
        Aim(
            f"the whole system adds at most {aim:g} ms to TTFT at {share} of 64 streams, scheduling included",
            "not measured" if value is None else f"{value:.2f} ms",
            None if value is None else value <= aim,
            "" if value is None or value <= aim else limit,
        )
        for share, aim, value in (("p50", 1.0, p50), ("p99", 3.0, p99))
    ]


def _find(summary: Summary, system: str, workload: str) -> Figures | None:
    return summary.get(system, {}).get(workload)


def _medians(dictionaries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for values in dictionaries:
        for name, value in values.items():
            collected.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in collected.items()}
