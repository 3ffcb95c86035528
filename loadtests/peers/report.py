"""The report as a page: what was aimed for and found, then every figure by theme. Pure: summary in, Markdown out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from hops import Hop
from summary import Aim, Figures, Summary

__all__ = ["Report", "page"]

SUBMITTED: Final = ("c1", "c16", "c64", "c256")
STREAMS: Final = (16, 64, 256)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is written. `systems` are notes by name; `skipped` reasons by name; `hops` by system."""

    command: str
    date: str
    machine: str
    num_runs: int
    minutes: float
    sample_ratio: float
    max_foreign: float
    systems: dict[str, str]
    skipped: dict[str, str]
    aims: list[Aim]
    figures: dict[str, dict[str, Figures]]
    hops: dict[str, list[Hop]]


def page(report: Report) -> str:
    """Return the Markdown text."""
    summary = report.figures
    parts = [
        _opening(report),
        "## What was aimed for\n",
        _table(
            ["aim", "found", "met", "what limits it"],
            [
                [aim.text, aim.found, {True: "yes", False: "**no**", None: "-"}[aim.is_met], aim.limit]
                for aim in report.aims
            ],
        ),
        "![Requests/s, SSE tokens/s and added TTFT of every system](peers.png)\n",
        "## Whole answers\n",
        "Chat with a prompt of about 1 KB and 16 tokens, not streamed. CPU is that of the gateway at c=64: "
        "milliseconds per request are seconds per 1,000. Added latency is open loop, from when a request was due: its "
        "way to the engine plus the answer's way back. ~: the difference to no gateway, where tokens carry no "
        "stamps.\n",
        _whole(summary),
        "## Streams of 128 tokens, 10 ms apart\n",
        "Added TTFT: the request's way to the engine plus the first token's way back, scheduling included where "
        "there is any. Delay: the way of every token from engine to client. Gap: between tokens at the client; 10 ms "
        "is ideal. Each pair is p50 / p99.\n",
        _paced(summary),
        "## Streams without delay\n",
        _streams(summary),
        "## Embeddings\n",
        "384 floats per text, asked for as numbers. 16 connections.\n",
        _embeddings(summary),
        "## SAGE as a whole\n",
        "CPU by process, milliseconds per request. `sage-core` has mocks in the place of scheduler and worker.\n",
        _by_process(summary),
    ]
    if report.hops:
        parts += [
            "## Where SAGE's time goes\n",
            "One streamed request of one token after the other on an idle system, watched where it crosses the bus; "
            "microseconds, p50 / p90. Each part has half a pass through nats-server at its bus ends.\n",
            *[_hops(name, found) for name, found in report.hops.items()],
        ]
    parts += ["## What was measured\n", _systems(report), _doubts(report)]
    return "\n".join(parts)


def _opening(report: Report) -> str:
    return (
        "# SAGE beside other OpenAI gateways\n\n"
        f"`{report.command}`, {report.date}, {report.machine}; {report.minutes:.0f} minutes. Medians of "
        f"{report.num_runs} runs, the systems taking turns. Each gateway, and nothing else, has one core; mock engine, "
        "load generator and what else a system consists of share another. Every gateway gets the same bodies from the "
        "same client, and the mocks behind them cost a few microseconds per answer. SAGE runs with an API key, all "
        "limits, scheduling, a trace header in every request, metrics on, and "
        f"{report.sample_ratio:.0%} of requests traced.\n"
    )


def _whole(summary: Summary) -> str:
    rows = []
    for name, found in summary.items():
        row = [name]
        row += [_rate(found.get(f"chat16-{c}"), lambda figures: figures.requests_per_s) for c in SUBMITTED]
        for rate in ("r50", "r1000"):
            row.append(_added(summary, found.get(f"chat16-{rate}"), f"chat16-{rate}"))
        cpu = _gateway_cpu(found.get("chat16-c64"))
        row.append("-" if cpu is None else f"{cpu:.3f}")
        row.append(_peak(found))
        rows.append(row)
    return _table(
        [
            "system", *(f"req/s {c.replace('c', 'c=')}" for c in SUBMITTED), "added ms at 50/s, p50 / p99",
            "at 1,000/s", "CPU ms/req", "peak RSS MiB",
        ],
        rows,
    )  # fmt: skip


def _paced(summary: Summary) -> str:
    rows = []
    for name, found in summary.items():
        row = [name]
        for num in STREAMS:
            figures = found.get(f"paced-c{num}")
            row.append(_added_ttft(summary, figures, f"paced-c{num}"))
            row.append(_pair(figures, lambda f: (f.transit_p50_ms, f.transit_p99_ms)))
            row.append(_pair(figures, lambda f: (f.gap_p50_ms, f.gap_p99_ms)))
        if any(cell != "-" for cell in row[1:]):
            rows.append(row)
    heads = ["system"]
    for num in STREAMS:
        heads += [f"{num} streams: added TTFT ms", "delay ms", "gap ms"]
    return _table(heads, rows)


def _streams(summary: Summary) -> str:
    rows = []
    for name, found in summary.items():
        row = [name]
        for num in (64, 256):
            figures = found.get(f"stream-c{num}")
            row.append(_rate(figures, lambda f: f.tokens_per_s))
            row.append("-" if figures is None else f"{figures.gateway_share:.0%} / {figures.load_share:.0%}")
            cost = None if figures is None else figures.cpu_us_per_token.get("gateway")
            row.append("-" if cost is None else f"{cost:.2f}")
        if any(cell != "-" for cell in row[1:]):
            rows.append(row)
    heads = ["system"]
    for num in (64, 256):
        heads += [f"{num} streams: tokens/s", "busy: gateway's core / other", "CPU µs/token"]
    return _table(heads, rows) + (
        "\n≥: the other core, with mock engine and client, was at its limit before the gateway was; the CPU per token "
        "says more there.\n"
    )


def _embeddings(summary: Summary) -> str:
    rows = []
    for name, found in summary.items():
        one, many = found.get("embed1-c16"), found.get("embed32-c16")
        if one is None or many is None:
            continue
        row = [name]
        for figures, num_texts in ((one, 1), (many, 32)):
            row.append(_rate(figures, lambda f: f.requests_per_s))
            row.append(_rate(figures, lambda f, n=num_texts: f.requests_per_s * n))  # type: ignore[misc]
            cpu = _gateway_cpu(figures)
            row.append("-" if cpu is None else f"{cpu:.3f}")
        rows.append(row)
    return _table(
        [
            "system",
            "1 text: req/s",
            "embeddings/s",
            "CPU ms/req",
            "32 texts: req/s",
            "embeddings/s",
            "CPU ms/req",
        ],
        rows,
    )


def _by_process(summary: Summary) -> str:
    systems = [name for name in summary if name.startswith("sage")]
    rows = []
    for name in systems:
        for workload, figures in summary[name].items():
            cpu = figures.cpu_ms_per_request
            rows.append(
                [
                    name,
                    workload,
                    f"{figures.requests_per_s:,.0f}",
                    f"{sum(cpu.values()):.3f}",
                    ", ".join(f"{process} {value:.3f}" for process, value in cpu.items() if value >= 0.0005),
                ]
            )
    return _table(["system", "workload", "req/s", "CPU ms/req", "of that"], rows)


def _hops(name: str, found: Sequence[Hop]) -> str:
    rows = [[hop.title, f"{hop.p50_us:,.0f} / {hop.p90_us:,.0f}"] for hop in found]
    return _table([f"{name}: part", "µs"], rows)


def _systems(report: Report) -> str:
    lines = [f"- **{name}**: {note}." for name, note in report.systems.items()]
    lines += [f"- **{name}** was left out: {reason}" for name, reason in report.skipped.items()]
    return "\n".join(lines) + "\n"


def _doubts(report: Report) -> str:
    """Say which figures are to be taken with care."""
    lines = []
    for name, found in report.figures.items():
        for workload, figures in found.items():
            said = []
            if figures.num_failed or figures.num_wrong:
                said.append(
                    f"{figures.num_failed} failed, {figures.num_wrong} wrong answers ({figures.error})"
                )
            if figures.max_foreign_share > report.max_foreign:
                said.append(f"other processes took up to {figures.max_foreign_share:.0%} of a core")
            if figures.spread > 0.2:
                said.append(f"the runs' rates differ by {figures.spread:.0%}")
            if said:
                lines.append(f"- {name}, {workload}: {'; '.join(said)}.")
    if not lines:
        return "No run was disturbed, no answer wrong.\n"
    return "To be taken with care:\n\n" + "\n".join(lines) + "\n"


# Cells.


def _rate(figures: Figures | None, of: Callable[[Figures], float]) -> str:
    if figures is None:
        return "-"
    return f"{'≥ ' if figures.is_load_bound else ''}{of(figures):,.0f}"


def _gateway_cpu(figures: Figures | None) -> float | None:
    return None if figures is None else figures.cpu_ms_per_request.get("gateway")


def _peak(found: dict[str, Figures] | object) -> str:
    assert isinstance(found, dict)
    peak = max(figures.peak_rss_mib for figures in found.values())
    return f"{peak:,.0f}" if peak else "-"


def _pair(figures: Figures | None, of: Callable[[Figures], tuple[float | None, float | None]]) -> str:
    if figures is None:
        return "-"
    first, second = of(figures)
    return "-" if first is None or second is None else f"{first:.2f} / {second:.2f}"


def _added(summary: Summary, figures: Figures | None, workload: str) -> str:
    """Exact where tokens are stamped; else the difference to no gateway, marked."""
    if figures is None or figures.added_p50_ms is not None:
        return _pair(figures, lambda f: (f.added_p50_ms, f.added_p99_ms))
    return _difference(summary, figures, workload, lambda f: (f.latency_p50_ms, f.latency_p99_ms))


def _added_ttft(summary: Summary, figures: Figures | None, workload: str) -> str:
    if figures is None or figures.added_p50_ms is not None:
        return _pair(figures, lambda f: (f.added_p50_ms, f.added_p99_ms))
    return _difference(summary, figures, workload, lambda f: (f.ttft_p50_ms, f.ttft_p99_ms))


def _difference(
    summary: Summary,
    figures: Figures,
    workload: str,
    of: Callable[[Figures], tuple[float | None, float | None]],
) -> str:
    floor = summary.get("direct", {}).get(workload)
    if floor is None:
        return "-"
    (first, second), (floor_first, floor_second) = of(figures), of(floor)
    if first is None or second is None or floor_first is None or floor_second is None:
        return "-"
    return f"~ {first - floor_first:.2f} / {second - floor_second:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
