"""How `sage simulate` shows its results on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from rich.table import Table
from rich.text import Text

from sage_cli.simulation_plan import Plan
from sage_simulator.capacity import Capacity
from sage_simulator.metrics import Level, Percentiles
from sage_simulator.report import Report
from sage_simulator.slo_classes import WorkClass
from sage_simulator.sweep import Point, Spread

__all__ = ["capacity_table", "detail_tables", "heading", "result_table"]

_GOOD, _FAIR = 0.99, 0.9
_MAX_ROWS = 16


def heading(plan: Plan) -> str:
    """Return what is simulated, in a few lines."""
    trace, fleet = plan.trace, plan.fleet
    pools = ", ".join(f"{len(fleet.of_pool(pool))} x {pool}" for pool in fleet.pools)
    lines = [
        f"trace    {trace.name}: {len(trace):,} runs in {_seconds(trace.span)}"
        + (f" ({trace.num_left_out:,} rows without input or output left out)" if trace.num_left_out else ""),
        f"fleet    {fleet.name}: {pools}" + (f" ({fleet.description})" if fleet.description else ""),
        f"targets  {'; '.join(_targets(found) for found in plan.classes)}",
    ]
    if plan.part:
        lines.insert(1, f"part     {plan.part}")
    for companion, beside in plan.companions:
        rate = companion.rate or beside.rate
        lines.insert(1, f"beside   {beside.name}: {rate:.4g} runs/s of {companion.pool}")
    if plan.is_resampled:
        lines.append(f"seeds    {plan.seeds[0]} to {plan.seeds[-1]}, each another sample of the trace")
    return "\n".join(lines) + "\n"


def result_table(points: Sequence[Point]) -> Table:
    """Return one row per rate and policy. Figures of several seeds are means; attainment has its range."""
    table = _table("rate/s", "policy", "attainment", "good/s", "shed", "TTFT p50", "p99", "TPOT p50", "p99", "E2E p99",
                   "queue p99", left=(1,))  # fmt: skip
    previous = None
    for point in points:
        summary = point.summary
        reports = summary.reports
        rate = float(np.mean([report.rate for report in reports]))
        if previous is not None and previous != summary.rate:
            table.add_section()
        previous = summary.rate
        table.add_row(
            _figure(rate, ".4g"),
            summary.policy,
            _attainment(summary.attainment),
            _figure(summary.goodput.mean, ".2f"),
            _percent(summary.shed_share.mean),
            *(
                _time(_mean(getattr(getattr(report.overall, field), share) for report in reports))
                for field, share in (
                    ("ttft", "p50"),
                    ("ttft", "p99"),
                    ("tpot", "p50"),
                    ("tpot", "p99"),
                    ("e2e", "p99"),
                    ("queue", "p99"),
                )
            ),
        )
    unservable = max(
        (report.num_unservable for point in points for report in point.summary.reports), default=0
    )
    if unservable:
        table.caption = f"{unservable:,} runs were left out: no instance of the fleet could hold them"
    return table


def detail_tables(points: Sequence[Point]) -> list[Table]:
    """Return what a single rate shows beside the overall figures: classes, pools, tenants, decisions (first seed)."""
    if len({point.summary.rate for point in points}) > 1:
        return []
    reports = [point.summary.reports[0] for point in points]
    tables = []
    if any(len(report.classes) > 1 for report in reports):
        tables.append(_level_table("class", reports, [report.classes for report in reports]))
    if any(len(report.pools) > 1 for report in reports):
        tables.append(_pool_table(reports))
    if any(len(report.tenants) > 1 for report in reports):
        tables.append(_level_table("tenant", reports, [report.tenants for report in reports]))
        tables.append(_fairness_table(reports))
    if any(report.decision.count for report in reports):
        tables.append(_decision_table(reports))
    return tables


def capacity_table(found: Sequence[Capacity]) -> Table:
    """Return one row per policy, best first."""
    table = _table("policy", "capacity/s", "good/s", "rates tried", left=(0,))
    for item in sorted(found, key=lambda item: -item.rate):
        rate = (
            f"{'>= ' if item.is_lower_bound else ''}{item.rate:.4g}"
            if item.rate
            else f"< {item.probes[0].rate:.4g}"
        )
        table.add_row(
            item.policy, rate, _figure(item.goodput, ".2f") if item.rate else "", str(len(item.probes))
        )
    table.caption = f"highest rate with attainment >= {found[0].target:.1%}" if found else None
    return table


def _level_table(what: str, reports: Sequence[Report], levels: Sequence[dict[str, Level]]) -> Table:
    table = _table("policy", what, "submitted", "attainment", "shed", "TTFT p50", "p99", "TPOT p99", "E2E p99",
                   left=(0, 1))  # fmt: skip
    for report, of_report in zip(reports, levels, strict=True):
        for name, level in list(of_report.items())[:_MAX_ROWS]:
            share = Spread(level.attainment, level.attainment, level.attainment)
            table.add_row(
                report.policy, name, f"{level.submitted:,}", _attainment(share), _percent(level.shed / level.submitted),
                _time(level.ttft.p50), _time(level.ttft.p99), _time(level.tpot.p99), _time(level.e2e.p99),
            )  # fmt: skip
        if len(of_report) > _MAX_ROWS:
            table.add_row(report.policy, f"and {len(of_report) - _MAX_ROWS} more", *[""] * 7)
    return table


def _pool_table(reports: Sequence[Report]) -> Table:
    table = _table("policy", "pool", "stages", "cached", "queue p50", "p99", "engine p50", "p99", left=(0, 1))
    for report in reports:
        for name, pool in report.pools.items():
            table.add_row(
                report.policy, name, f"{pool.submitted:,}", _percent(pool.cached_share), _time(pool.queue.p50),
                _time(pool.queue.p99), _time(pool.engine.p50), _time(pool.engine.p99),
            )  # fmt: skip
    return table


def _fairness_table(reports: Sequence[Report]) -> Table:
    table = _table(
        "policy", "Jain, service", "Jain, attainment", "largest service gap", "between", left=(0, 4)
    )
    for report in reports:
        found = report.fairness
        table.add_row(
            report.policy,
            _plain(found.jain_service, ".3f"),
            _plain(found.jain_attainment, ".3f"),
            f"{_plain(found.max_service_gap, ',.0f')} tokens" if found.max_service_gap is not None else "",
            " and ".join(found.gap_tenants or ()),
        )
    return table


def _decision_table(reports: Sequence[Report]) -> Table:
    table = _table("policy", "decisions", "p50", "p99", "max", left=(0,))
    for report in reports:
        found: Percentiles = report.decision
        table.add_row(report.policy, f"{found.count:,}", _time(found.p50), _time(found.p99), _time(found.max))
    return table


def _table(*titles: str, left: tuple[int, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number in left else "right", overflow="fold")
    return table


def _attainment(found: Spread) -> Text:
    style = "green" if found.mean >= _GOOD else "yellow" if found.mean >= _FAIR else "red"
    text = _percent(found.mean, digits=2)
    if found.min != found.max:
        text += f" ({found.min * 100:.1f}-{found.max * 100:.1f})"
    return Text(text, style=style)


def _percent(share: float, *, digits: int = 1) -> str:
    return "-" if math.isnan(share) else f"{share * 100:.{digits}f}%"


def _figure(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _plain(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _time(seconds: float) -> str:
    """Three digits with the unit that suits them."""
    if math.isnan(seconds):
        return "-"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or unit == "us":
            return (
                f"{seconds * factor:.3g} {unit}"
                if seconds * factor < 1000
                else f"{seconds * factor:.0f} {unit}"
            )
    return "0"


def _seconds(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds:.0f} s"


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _targets(found: WorkClass) -> str:
    slo = found.slo
    parts = []
    if slo.ttft is not None:
        per_token = f" + in/{slo.ttft_tokens_per_second:g}" if slo.ttft_tokens_per_second else ""
        parts.append(f"TTFT {slo.ttft:g} s{per_token}")
    if slo.tpot is not None:
        parts.append(f"TPOT {slo.tpot * 1e3:g} ms")
    if slo.e2e is not None:
        parts.append(f"E2E {slo.e2e:g} s")
    where = f" ({found.pool})" if found.pool else ""
    return f"{found.name}{where}: {', '.join(parts) or 'none'}"
