"""Where the time of one trace went: spans from every actor, laid out as a tree with repeated work folded together."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table

from sage_wire.messages import Span

__all__ = ["Stage", "lay_out", "total_ms", "trace_table"]

_MAX_DEPTH = 40


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the table: all spans of one name under one parent line; attempts made again have one of their own.

    `start_ms` counts from the trace's first span; with several hosts it is as good as their clocks. `self_ms` is the
    part of `total_ms` that no child covers.
    """

    depth: int
    name: str
    service: str
    count: int
    start_ms: float
    total_ms: float
    self_ms: float
    is_error: bool


def total_ms(spans: Iterable[Span]) -> float:
    """Return the time from the first start to the last end; 0 for no spans."""
    spans = list(spans)
    if not spans:
        return 0.0
    return (max(span.end_ns for span in spans) - min(span.start_ns for span in spans)) / 1e6


def lay_out(spans: Iterable[Span]) -> list[Stage]:
    """Return the stages, parents before children, siblings by start. A span found twice counts once."""
    by_id = {span.span_id: span for span in spans}
    children: dict[str | None, list[Span]] = collections.defaultdict(list)
    for span in by_id.values():
        # A parent may be the client's own span, or lie in an actor that has died: then this is a root for us.
        children[span.parent_id if span.parent_id in by_id else None].append(span)
    if not by_id:
        return []
    origin = min(span.start_ns for span in by_id.values())
    stages: list[Stage] = []
    _lay_out_level(children[None], children, origin, 0, stages)
    return stages


def _lay_out_level(
    level: list[Span], children: dict[str | None, list[Span]], origin: int, depth: int, stages: list[Stage]
) -> None:
    groups: dict[tuple[str, str], list[Span]] = collections.defaultdict(list)
    for span in sorted(level, key=lambda each: (each.start_ns, each.span_id)):
        name = f"{span.name} (retry)" if span.links else span.name
        groups[name, span.service].append(span)
    for (name, service), group in groups.items():
        below = [child for span in group for child in children.get(span.span_id, [])]
        stages.append(
            Stage(
                depth=depth,
                name=name,
                service=service,
                count=len(group),
                start_ms=(group[0].start_ns - origin) / 1e6,
                total_ms=_covered(group) / 1e6,
                self_ms=sum(_uncovered(span, children.get(span.span_id, [])) for span in group) / 1e6,
                is_error=any(span.is_error for span in group),
            )
        )
        if below and depth < _MAX_DEPTH:
            _lay_out_level(below, children, origin, depth + 1, stages)


def _covered(spans: list[Span]) -> int:
    """Return the nanoseconds in which at least one of the spans ran."""
    covered, reached = 0, 0
    for span in sorted(spans, key=lambda each: each.start_ns):
        covered += max(0, span.end_ns - max(span.start_ns, reached))
        reached = max(reached, span.end_ns)
    return covered


def _uncovered(span: Span, children: list[Span]) -> int:
    inside = [
        Span(
            trace_id=child.trace_id,
            span_id=child.span_id,
            parent_id=child.parent_id,
            name=child.name,
            service=child.service,
            start_ns=max(child.start_ns, span.start_ns),
            end_ns=min(child.end_ns, span.end_ns),
        )
        for child in children
        if child.start_ns < span.end_ns and child.end_ns > span.start_ns
    ]
    return max(0, span.end_ns - span.start_ns - _covered(inside))


def trace_table(spans: list[Span]) -> Table:
    """Return the stages as a table for a terminal."""
    stages = lay_out(spans)
    whole = total_ms(spans) or 1.0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", overflow="fold")
    table.add_column("actor")
    for title in ("at ms", "total ms", "self ms"):
        table.add_column(title, justify="right")
    table.add_column("share")
    for stage in stages:
        name = "  " * stage.depth + stage.name + (f" x{stage.count}" if stage.count > 1 else "")
        table.add_row(
            name,
            stage.service,
            f"{stage.start_ms:.1f}",
            f"{stage.total_ms:.1f}",
            f"{stage.self_ms:.1f}",
            _bar(stage.total_ms / whole),
            style="red" if stage.is_error else None,
        )
    return table


def _bar(share: float) -> str:
    return "█" * round(min(1.0, share) * 20)
