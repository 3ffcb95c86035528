"""Policies side by side: every policy on the same workloads, over rates and seeds, several simulations at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from sage_simulator.fleet import Fleet
from sage_simulator.policies import PolicyChoice
from sage_simulator.report import Report
from sage_simulator.runner import Outcome, simulate
from sage_simulator.traces.trace import Floats
from sage_simulator.workload import Workload

__all__ = ["Point", "Spread", "Summary", "sweep"]


class Spread(msgspec.Struct, frozen=True):
    """A figure over seeds."""

    mean: float
    min: float
    max: float


class Summary(msgspec.Struct, frozen=True):
    """One policy at one rate; `rate` None: the trace's own. Figures are over the seeds of `reports`."""

    policy: str
    rate: float | None
    attainment: Spread
    goodput: Spread
    shed_share: Spread
    reports: list[Report]


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A summary, with the TTFT and TPOT of all runs of all seeds for plots."""

    summary: Summary
    ttft: Floats
    tpot: Floats


def sweep(
    make_workload: Callable[[float | None, int], Workload],
    fleet: Fleet,
    policies: Sequence[PolicyChoice],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    check: bool = False,
    time_decisions: bool = False,
    when_done: Callable[[], None] = lambda: None,
) -> list[Point]:
    """Return one point per rate and policy, rates first. All policies see the same workloads.

    `when_done` is called after each simulation, in this thread. With `jobs` > 1 simulations of native policies run at
    the same time; results do not depend on it.
    """
    points = []
    with ThreadPoolExecutor(jobs) as pool:
        for rate in rates:
            workloads = [(seed, make_workload(rate, seed)) for seed in seeds]
            calls = [
                partial(
                    simulate, workload, fleet, policy, seed=seed, check=check, time_decisions=time_decisions
                )
                for policy in policies
                for seed, workload in workloads
            ]
            outcomes = []
            for outcome in _run(pool, jobs, calls):
                outcomes.append(outcome)
                when_done()
            for number, policy in enumerate(policies):
                points.append(
                    _point(policy.name, rate, outcomes[number * len(seeds) : (number + 1) * len(seeds)])
                )
    return points


def _run(pool: ThreadPoolExecutor, jobs: int, calls: list[partial[Outcome]]) -> Iterator[Outcome]:
    if jobs == 1:
        # In the main thread, so that an interrupt stops the simulation at hand.
        for call in calls:
            yield call()
        return
    futures: list[Future[Outcome]] = [pool.submit(call) for call in calls]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _point(policy: str, rate: float | None, outcomes: list[Outcome]) -> Point:
    reports = [outcome.report for outcome in outcomes]
    levels = [report.overall for report in reports]
    summary = Summary(
        policy=policy,
        rate=rate,
        attainment=_spread([level.attainment for level in levels]),
        goodput=_spread([level.goodput for level in levels]),
        shed_share=_spread([level.shed / level.submitted for level in levels]),
        reports=reports,
    )
    return Point(
        summary,
        np.concatenate([outcome.times.ttft for outcome in outcomes]),
        np.concatenate([outcome.times.tpot for outcome in outcomes]),
    )


def _spread(values: list[float]) -> Spread:
    return Spread(float(np.mean(values)), min(values), max(values))
