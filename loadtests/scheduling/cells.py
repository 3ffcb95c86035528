"""One figure of the comparison: a policy's capacity on a scenario, or what it does in overload."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from typing import Final

import msgspec
import numpy as np
from scenarios import Half, Scenario, fleet_of, workload_of
from search import highest_step, rate_at, step_near

from sage_simulator.policies import PolicyChoice
from sage_simulator.runner import Outcome, simulate

__all__ = ["TARGET", "Misses", "Overload", "capacity_step", "misses_of", "overload_of"]

TARGET: Final = 0.99
"""Attainment that a capacity is defined by."""

RANGE: Final = 10.0
"""Capacities are searched from a scenario's guess divided by this to the guess times this."""


class Overload(msgspec.Struct, frozen=True):
    """What a policy does in overload. Shares of what was submitted, good runs/s; None: nothing to measure."""

    attainment: float
    goodput: float
    tight: float
    relaxed: float
    shed: float
    jain: float | None
    ttft_p99: float | None
    tpot_p99: float | None


class Misses(msgspec.Struct, frozen=True):
    """Why runs were bad, as counts that may overlap, and how many ran on each kind of instance."""

    submitted: int
    shed: int
    ttft: int
    tpot: int
    by_group: dict[str, int]


def capacity_step(
    scenario: Scenario,
    half: Half,
    policy: PolicyChoice,
    seed: int,
    start: int,
    *,
    overload: bool = False,
    stride: int = 8,
    watch: Callable[[int, bool], None] = lambda _step, _passes: None,
) -> int:
    """Return the highest step of the rate grid at which at most 1 % of the runs are bad.

    The search begins at `start`; its lowest step stands for all rates below it. `overload`: with the classes of the
    overload experiment. A simulation ends once it has too many bad runs. `watch` is told of every rate that was tried.
    """

    def passes(step: int) -> bool:
        workload = workload_of(scenario, half, seed, rate_at(step), overload=overload)
        # 0.99 * 100 is not 99 in floating point: count the bad ones.
        allowed = int((1 - TARGET) * len(workload) + 1e-9)
        outcome = simulate(workload, fleet_of(scenario.fleet), policy, seed=seed, max_bad=allowed + 1)
        overall = outcome.report.overall
        is_kept = not outcome.report.stopped_early and overall.submitted - overall.good <= allowed
        watch(step, is_kept)
        return is_kept

    return highest_step(
        passes, start, step_near(scenario.guess / RANGE), step_near(scenario.guess * RANGE), stride
    )


def overload_of(scenario: Scenario, half: Half, policy: PolicyChoice, seed: int, rate: float) -> Overload:
    """Return what the policy does at `rate`, with 30 % tight and 70 % relaxed runs."""
    workload = workload_of(scenario, half, seed, rate, overload=True)
    report = simulate(workload, fleet_of(scenario.fleet), policy, seed=seed).report
    overall, classes = report.overall, report.classes
    return Overload(
        attainment=overall.attainment,
        goodput=overall.goodput,
        tight=classes["tight"].attainment,
        relaxed=classes["relaxed"].attainment,
        shed=overall.shed / overall.submitted,
        jain=report.fairness.jain_attainment,
        ttft_p99=_known(overall.ttft.p99),
        tpot_p99=_known(overall.tpot.p99),
    )


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def misses_of(scenario: Scenario, outcome: Outcome) -> Misses:
    """Return why the runs of a simulation were bad."""
    workload, times = outcome.workload, outcome.times
    last = workload.last_stage
    late = times.ttft > workload.ttft_slo[last] + 1e-9
    slow = times.tpot > workload.tpot_slo[last] + 1e-9
    groups = [instance.group for instance in fleet_of(scenario.fleet).instances]
    where = outcome.stages["instance"][last]
    bad = ~times.is_good & (where < len(groups))
    by_group = {
        group: int(np.isin(where[bad], [i for i, name in enumerate(groups) if name == group]).sum())
        for group in dict.fromkeys(groups)
    }
    return Misses(len(workload), int((times.outcome == 1).sum()), int(late.sum()), int(slow.sum()), by_group)
