"""The soak test's page. Pure: what was found in, Markdown out."""

from __future__ import annotations

import msgspec
from growth import Growth
from watching import Sample

__all__ = ["Report", "page"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is written. `wrong` are examples; `num_wrong` counts all."""

    command: str
    date: str
    machine: str
    minutes: float
    warmup_minutes: float
    num_users: int
    counts: dict[str, int]
    left_out: dict[str, str]
    num_wrong: int
    wrong: list[str]
    growth: list[Growth]
    left_over: list[str]
    lost: list[str]
    samples: list[Sample]

    @property
    def is_passed(self) -> bool:
        """True where nothing grew, nothing was left over, no process was lost and every answer was right."""
        return not (
            any(line.is_growing for line in self.growth) or self.left_over or self.lost or self.num_wrong
        )


def page(report: Report) -> str:
    """Return the Markdown text."""
    num = sum(report.counts.values())
    lines = [
        "# Soak test",
        "",
        f"`{report.command}`, {report.date}, {report.machine}. {report.minutes:.0f} minutes of mixed load from "
        f"{report.num_users} users on one `sage up` with the emulated engine, a token every 10 ms: {num:,} actions. "
        f"Lines are fitted to samples taken every 10 s after the first {report.warmup_minutes:.1f} minutes."
        + (
            "" if any(line.figure == "rss" for line in report.growth) else " Too short a run to judge memory."
        ),
        "",
        f"**{'Passed' if report.is_passed else 'FAILED'}**: {_verdict(report)}",
        "",
        "![Memory, descriptors and threads of every process](soak.png)",
        "",
        "| process | figure | first | last | growth per hour | bound per hour | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {line.process} | {line.figure}, {line.unit} | {line.first:.1f} | {line.last:.1f} | "
        f"{line.per_hour:+.1f} ± {line.error_per_hour:.1f} | {line.bound_per_hour:.0f} | "
        f"{'**grows**' if line.is_growing else ''} |"
        for line in report.growth
    ]
    lines += ["", "| what users did | times |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {count:,} |" for name, count in sorted(report.counts.items())]
    lines += [f"| {name.replace('_', ' ')} | left out: {why} |" for name, why in report.left_out.items()]
    for title, found in (
        ("Left over", report.left_over),
        ("Lost", report.lost),
        ("Wrong answers", report.wrong),
    ):
        if found:
            lines += ["", f"## {title}", "", *[f"- {text}" for text in found]]
    return "\n".join(lines) + "\n"


def _verdict(report: Report) -> str:
    growing = [f"{line.process} {line.figure}" for line in report.growth if line.is_growing]
    parts = [
        f"growing: {', '.join(growing)}" if growing else "nothing grows beyond its bound",
        f"{len(report.left_over)} things left over" if report.left_over else "nothing is left over",
        f"{len(report.lost)} processes lost" if report.lost else "no process was lost",
        f"{report.num_wrong} wrong answers" if report.num_wrong else "every answer was right",
    ]
    return "; ".join(parts) + "."
