"""Runs the simulations of `sage simulate` with a progress bar, and writes their results as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sage_cli.exits import Exit, fail
from sage_cli.simulation_plan import Plan
from sage_cli.terminal import err, print_json
from sage_simulator.capacity import Capacity, capacity
from sage_simulator.sweep import Point, sweep

__all__ = ["check_outputs", "find_capacities", "run_plan", "warnings", "write_json"]


class _Advance(Protocol):
    def __call__(self) -> None: ...


def check_outputs(json_file: str | None, plots: str | None) -> None:
    """Refuse places that cannot be written, before hours of simulation are spent on what would go there."""
    if json_file is not None and json_file != "-":
        _check_place("--json", json_file, is_folder=False)
    if plots is not None:
        _check_place("--plots", plots, is_folder=True)


def _check_place(option: str, name: str, *, is_folder: bool) -> None:
    what = "a folder" if is_folder else "a file, or - for stdout"
    if not name.strip() or "\0" in name:
        fail(f"{option} is {name!r}; expected {what}", Exit.USAGE)
    path = Path(name)
    try:
        if path.exists():
            if path.is_dir() != is_folder:
                found = "a folder" if path.is_dir() else "not a folder"
                fail(f"{option}: {name} is {found}; expected {what}", Exit.USAGE)
            place = path
        else:
            place = path.parent
            while is_folder and not place.exists():
                place = place.parent  # folders of plots are made as they are needed
            if not place.is_dir():
                fail(f"{option}: {name} cannot be written: {place} is no folder", Exit.USAGE)
    except OSError as error:
        fail(f"{option}: {name} cannot be written: {error.strerror or error}", Exit.USAGE)
    if not os.access(place, os.W_OK):
        fail(f"{option}: {name} cannot be written: no permission for {place}", Exit.USAGE)


def warnings(points: Sequence[Point]) -> list[str]:
    """Return a line for each point at which no run of any seed finished: its figures say nothing."""
    lines = []
    for point in points:
        levels = [report.overall for report in point.summary.reports]
        if any(level.finished for level in levels):
            continue
        shed, failed = sum(level.shed for level in levels), sum(level.failed for level in levels)
        unfinished = sum(level.unfinished for level in levels)
        rate = "" if point.summary.rate is None else f" at {point.summary.rate:g}/s"
        lines.append(
            f"warning: under {point.summary.policy}{rate} no run finished: "
            f"{shed:,} were shed, {failed:,} failed, {unfinished:,} were never answered"
        )
    return lines


def run_plan(plan: Plan, *, jobs: int, check: bool, time_decisions: bool) -> list[Point]:
    """Run every policy at every rate with every seed."""
    total = len(plan.rates) * len(plan.policies) * len(plan.seeds)
    with _progress("simulating", total) as advance:
        return sweep(
            plan.workload,
            plan.fleet,
            plan.policies,
            plan.rates,
            plan.seeds,
            jobs=jobs,
            check=check,
            time_decisions=time_decisions,
            when_done=advance,
        )


def find_capacities(plan: Plan, target: float) -> list[Capacity]:
    """Find the capacity of every policy between the lowest and the highest rate."""
    rates = [rate for rate in plan.rates if rate is not None]
    found = []
    with _progress("searching", len(plan.policies)) as advance:
        for policy in plan.policies:
            found.append(
                capacity(
                    plan.workload,
                    plan.fleet,
                    policy,
                    target=target,
                    low=min(rates),
                    high=max(rates),
                    seeds=plan.seeds,
                )
            )
            advance()
    return found


def write_json(
    file: str, plan: Plan, *, points: Sequence[Point] = (), capacities: Sequence[Capacity] = ()
) -> None:
    """Write one document: what was simulated, and what came out. `file` `-`: on stdout. NaN becomes null."""
    document: dict[str, Any] = {
        "trace": {
            "name": plan.trace.name,
            "runs": len(plan.trace),
            "seconds": plan.trace.span,
            "left_out": plan.trace.num_left_out,
        },
        "fleet": {
            "name": plan.fleet.name,
            "description": plan.fleet.description,
            "instances": [instance.name for instance in plan.fleet.instances],
        },
        "classes": plan.options.classes,
        "seeds": plan.seeds if plan.is_resampled else [],
    }
    if points:
        document["results"] = [point.summary for point in points]
    if capacities:
        document["capacities"] = capacities
    if file == "-":
        print_json(document)
        return
    try:
        Path(file).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror or error}")


@contextmanager
def _progress(what: str, total: int) -> Iterator[_Advance]:
    """Show a bar on a terminal that is not the pipe the results go to; elsewhere nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
