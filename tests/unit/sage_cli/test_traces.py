"""Spans become a tree; repeated work is folded and time is never counted twice."""

from __future__ import annotations

from msgspec import structs
from rich.console import Console

from sage_cli.traces import lay_out, total_ms, trace_table
from sage_wire.messages import Span

MS = 1_000_000


def span(
    name: str, parent: str | None, start: float, end: float, *, id: str | None = None, is_error: bool = False
) -> Span:
    return Span(
        trace_id="t" * 32,
        span_id=id or name,
        parent_id=parent,
        name=name,
        service="s",
        start_ns=round(start * MS),
        end_ns=round(end * MS),
        is_error=is_error,
    )


def test_children_follow_their_parent_in_order_of_start() -> None:
    stages = lay_out([span("late", "root", 6, 9), span("root", "absent", 0, 10), span("early", "root", 1, 4)])
    assert [(stage.name, stage.depth) for stage in stages] == [("root", 0), ("early", 1), ("late", 1)]


def test_self_time_is_what_no_child_covers_and_overlap_counts_once() -> None:
    root, *_ = lay_out(
        [
            span("root", None, 0, 10),
            span("a", "root", 1, 5),
            span("b", "root", 3, 7),
            span("c", "root", 9, 30),
        ]
    )
    assert (root.total_ms, root.self_ms) == (10.0, 3.0)


def test_repeated_siblings_are_one_line_with_their_children_below() -> None:
    spans = [span("root", None, 0, 10)]
    for number in range(3):
        spans.append(span("node", "root", number, number + 2, id=f"n{number}"))
        spans.append(span("call", f"n{number}", number, number + 1, id=f"c{number}"))
    stages = lay_out(spans)
    assert [(stage.name, stage.count, stage.depth) for stage in stages] == [
        ("root", 1, 0),
        ("node", 3, 1),
        ("call", 3, 2),
    ]
    assert stages[1].total_ms == 4.0


def test_an_attempt_that_links_to_an_earlier_one_is_a_line_of_its_own() -> None:
    first = span("submit p", "root", 1, 4, id="first", is_error=True)
    again = structs.replace(span("submit p", "root", 4, 9, id="again"), links=["t-first"])
    stages = lay_out([span("root", None, 0, 10), first, again])
    assert [(stage.name, stage.is_error) for stage in stages] == [
        ("root", False),
        ("submit p", True),
        ("submit p (retry)", False),
    ]


def test_a_span_reported_twice_counts_once() -> None:
    assert [stage.count for stage in lay_out([span("root", None, 0, 1), span("root", None, 0, 1)])] == [1]


def test_a_cycle_of_parents_ends() -> None:
    assert lay_out([span("a", "b", 0, 1), span("b", "a", 0, 1)]) == []
    deep = [span(f"n{number}", f"n{number - 1}" if number else None, 0, 1) for number in range(200)]
    assert len(lay_out(deep)) < 200


def test_no_spans_are_no_stages() -> None:
    assert lay_out([]) == []
    assert total_ms([]) == 0.0


def test_the_table_shows_names_times_and_shares() -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(trace_table([span("root", None, 0, 10), span("node", "root", 0, 5, is_error=True)]))
    text = console.export_text()
    console.file.close()
    assert "root" in text
    assert "  node" in text
    assert "10.0" in text
