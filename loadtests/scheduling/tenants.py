"""Fairness: what two backlogged tenants get, and what an aggressive tenant does to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np
from scenarios import SCENARIOS, fleet_of, slice_of

from sage_policy import SloClass
from sage_simulator.policies import policy_choice
from sage_simulator.resampling import Resampling
from sage_simulator.runner import simulate
from sage_simulator.shaping import at_rate, mixed
from sage_simulator.slo_classes import WorkClass
from sage_simulator.traces import Labels, Trace
from sage_simulator.workload import WorkloadOptions, build_workload

__all__ = ["Aggression", "Backlog", "aggression", "backlogs"]

POLICIES: Final = (
    "hybrid",
    "hybrid-fair",
    "vtc",
    "lmetric",
    "least-outstanding",
    "least-outstanding+hold+shed",
)
_SCENARIO: Final = SCENARIOS["conv-mixed"]
_NO_TARGETS: Final = (WorkClass("all", slo=SloClass()),)
NUM_OTHERS: Final = 3
AGGRESSION: Final = 10


class Backlog(msgspec.Struct, frozen=True):
    """Two tenants with equal weights who both always have work waiting; means over seeds.

    `jain`: Jain's index of the cost served to each while both wait (1 a prompt token that was computed, 2 an output
    token). `gap`: largest difference in that cost, in tokens, over any time in which both waited.
    """

    policy: str
    mix: str
    jain: float
    gap: float


class Aggression(msgspec.Struct, frozen=True):
    """Three tenants at their share, and one at its share (`before`) or at ten times that (`after`); means over seeds.

    `p99_*`: TTFT of the three; `attainment_*`: theirs; `aggressor`: the fourth's, when it sends ten times its share.
    """

    policy: str
    load: float
    p99_before: float
    p99_after: float
    attainment_before: float
    attainment_after: float
    aggressor: float


def _named(trace: Trace, name: str) -> Trace:
    label = Labels.same(name, len(trace))
    return replace(trace, tenant=label, route=label)


def backlogs(capacity: float, seeds: Sequence[int]) -> list[Backlog]:
    """Return the shares of two tenants who ask for 3 and 1.5 times the `capacity`, of like and of unlike requests."""
    unlike = SCENARIOS["code-mixed"].trace
    found = []
    for mix, other in (("conversation and conversation", _SCENARIO.trace), ("conversation and code", unlike)):
        for policy in POLICIES:
            rows = []
            for seed in seeds:
                first = at_rate(slice_of(_SCENARIO.trace, "test", seed, 4000), 3 * capacity)
                second = at_rate(slice_of(other, "test", seed + 100, 2000), 1.5 * capacity)
                trace = mixed([_named(first, "one"), _named(second, "two")])
                options = WorkloadOptions(
                    seed=seed, resampling=Resampling.NONE, classes=_NO_TARGETS, max_tokens=32_768
                )
                workload = build_workload(trace, fleet_of(_SCENARIO.fleet), options)
                fair = simulate(
                    workload, fleet_of(_SCENARIO.fleet), policy_choice(policy), seed=seed
                ).report.fairness
                rows.append([fair.jain_service, fair.max_service_gap])
            jain, gap = np.array(rows, np.float64).mean(axis=0).tolist()
            found.append(Backlog(policy, mix, jain, gap))
    return found


def aggression(capacity: float, load: float, seeds: Sequence[int]) -> list[Aggression]:
    """Return what the others notice; at its share the system carries `load` times `capacity`."""
    share = capacity * load / (NUM_OTHERS + 1)
    found = []
    for policy in POLICIES:
        rows = [
            [*_aggression(policy, share, 1, seed), *_aggression(policy, share, AGGRESSION, seed)]
            for seed in seeds
        ]
        p99, kept, _, p99_after, kept_after, aggressor = np.array(rows).mean(axis=0).tolist()
        found.append(Aggression(policy, load, p99, p99_after, kept, kept_after, aggressor))
    return found


def _aggression(policy: str, share: float, times: int, seed: int) -> tuple[float, float, float]:
    """(p99 TTFT of the others, their attainment, the aggressor's attainment)."""
    runs_of_others = 1000
    traces = [
        _named(
            at_rate(slice_of(_SCENARIO.trace, "test", 10 * seed + number, runs_of_others), share),
            f"tenant-{number}",
        )
        for number in range(NUM_OTHERS)
    ]
    aggressive = slice_of(_SCENARIO.trace, "test", 10 * seed + NUM_OTHERS, runs_of_others * times)
    traces.append(_named(at_rate(aggressive, share * times), "aggressor"))
    options = WorkloadOptions(
        seed=seed, resampling=Resampling.NONE, classes=_SCENARIO.classes(overload=False), max_tokens=32_768
    )
    workload = build_workload(mixed(traces), fleet_of(_SCENARIO.fleet), options)
    times_of = simulate(workload, fleet_of(_SCENARIO.fleet), policy, seed=seed).times
    is_aggressor = workload.tenant.code == workload.tenant.names.index("aggressor")
    ttft = times_of.ttft[~is_aggressor]
    return (
        float(np.nanpercentile(ttft, 99)),
        float(times_of.is_good[~is_aggressor].mean()),
        float(times_of.is_good[is_aggressor].mean()),
    )
