"""Capacity and overload of every policy on every scenario, over seeds, on several processes."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from cells import Overload, capacity_step, overload_of
from plan import HYBRID
from scenarios import SCENARIOS, Half, workload_of
from search import rate_at, step_near
from store import Store

from sage_simulator.policies import policy_choice

__all__ = ["Comparison", "compare"]

_REFERENCE = "least-outstanding"
"""Its result on a seed says where to search for the others' on that seed."""

_NUM_CONTENDERS = 4
_DEADLINE_POLICIES = (HYBRID, "edf+shed", "sjf+shed")
"""Beside the policies of the highest capacity, those among which the one is that sets the rate of the overload."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures. `steps[scenario][policy]`: one step of the rate grid per seed; `overloads` likewise.

    `overload_rate[scenario]`: runs/s submitted in overload, per seed. `left_out`: share of a scenario's runs that no
    engine of its fleet holds.
    """

    seeds: int
    steps: dict[str, dict[str, list[int]]]
    overload_rate: dict[str, list[float]]
    overloads: dict[str, dict[str, list[Overload]]]
    left_out: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Task:
    kind: str
    scenario: str
    policy: str
    half: Half
    seeds: int
    starts: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        rates = "@" + ",".join(f"{rate:.6g}" for rate in self.rates) if self.rates else ""
        return f"{self.kind}|{self.scenario}|{self.policy}|{self.half}|{self.seeds}{rates}"


def compare(
    scenarios: Sequence[str],
    policies: Sequence[str],
    seeds: int,
    half: Half,
    store: Store,
    version: str,
    jobs: int,
) -> Comparison:
    """Measure what the store does not have yet, and return everything."""
    capacities = _Runner(store, version, jobs, "capacities")
    first = [_REFERENCE if _REFERENCE in policies else policies[0]]
    steps: dict[str, dict[str, list[int]]] = {name: {} for name in scenarios}
    for chosen in (first, [name for name in policies if name not in first]):
        tasks = [
            _Task("capacity", scenario, policy, half, seeds, tuple(steps[scenario].get(first[0], ())))
            for scenario in scenarios
            for policy in chosen
        ]
        for task, value in capacities.run(tasks):
            steps[task.scenario][task.policy] = value
    rates = _overload_rates(steps, seeds, half, capacities)
    overloads: dict[str, dict[str, list[Overload]]] = {name: {} for name in scenarios}
    tasks = [
        _Task("overload", scenario, policy, half, seeds, rates=tuple(rates[scenario]))
        for scenario in scenarios
        for policy in policies
    ]
    for task, value in _Runner(store, version, jobs, "overloads").run(tasks):
        overloads[task.scenario][task.policy] = [msgspec.convert(one, Overload) for one in value]
    left_out = {name: _share_left_out(name, half, seeds) for name in scenarios}
    ordered = {name: {policy: steps[name][policy] for policy in policies} for name in scenarios}
    return Comparison(seeds, ordered, rates, overloads, left_out)


def _share_left_out(name: str, half: Half, seeds: int) -> float:
    scenario = SCENARIOS[name]
    workloads = [workload_of(scenario, half, seed, scenario.guess) for seed in range(seeds)]
    left_out = sum(workload.num_unservable for workload in workloads)
    return left_out / (left_out + sum(len(workload) for workload in workloads))


def _overload_rates(
    steps: dict[str, dict[str, list[int]]], seeds: int, half: Half, runner: _Runner
) -> dict[str, list[float]]:
    """Return per seed twice the best capacity with the classes of the overload.

    Asked are the policies that are best without these classes, and those that are made for deadlines.
    """
    tasks = []
    for scenario, found in steps.items():
        best = sorted(found, key=lambda name: -_mean_rate(found[name]))[:_NUM_CONTENDERS]
        made_for_it = [name for name in _DEADLINE_POLICIES if name in found]
        tasks += [
            _Task("mixed-capacity", scenario, name, half, seeds, tuple(found[name]))
            for name in dict.fromkeys([*best, *made_for_it])
        ]
    rates = {scenario: [0.0] * seeds for scenario in steps}
    for task, value in runner.run(tasks):
        known = rates[task.scenario]
        rates[task.scenario] = [max(rate, 2 * rate_at(step)) for rate, step in zip(known, value, strict=True)]
    return rates


def _mean_rate(steps: list[int]) -> float:
    return float(np.mean([rate_at(step) for step in steps]))


def _measure(task: _Task) -> tuple[_Task, Any]:
    scenario, policy = SCENARIOS[task.scenario], policy_choice(task.policy)
    if task.kind == "overload":
        found = [overload_of(scenario, task.half, policy, seed, rate) for seed, rate in enumerate(task.rates)]
        return task, msgspec.to_builtins(found)
    steps: list[int] = []
    for seed in range(task.seeds):
        start = steps[-1] if steps else step_near(scenario.guess)
        if task.starts:
            # Seeds move all policies alike: by how much is known from the reference.
            start = task.starts[seed] + (steps[-1] - task.starts[seed - 1] if steps else 0)
        overload = task.kind == "mixed-capacity"
        stride = 4 if steps else 8
        steps.append(
            capacity_step(scenario, task.half, policy, seed, start, overload=overload, stride=stride)
        )
    return task, steps


@dataclass(frozen=True, slots=True)
class _Runner:
    store: Store
    version: str
    jobs: int
    name: str

    def run(self, tasks: Sequence[_Task]) -> Iterable[tuple[_Task, Any]]:
        """Yield every task with its value: known ones first, the others as they are measured."""
        missing = []
        for task in tasks:
            key = f"{self.version}|{task.key}"
            if key in self.store:
                yield task, self.store[key]
            else:
                missing.append(task)
        if not missing:
            return
        began = time.monotonic()
        for done, (task, value) in enumerate(self._measured(missing), 1):
            self.store.put(f"{self.version}|{task.key}", value)
            seconds = time.monotonic() - began
            where = f"{task.scenario} {task.policy}"
            _say(f"{self.name}: {done} of {len(missing)}, {seconds:.0f} s ({where})")
            yield task, value
        _say("\n", end="")

    def _measured(self, tasks: Sequence[_Task]) -> Iterable[tuple[_Task, Any]]:
        if self.jobs == 1:
            yield from map(_measure, tasks)
            return
        # Processes: preparing and judging a simulation is Python, and a scenario's workloads are kept between tasks.
        with multiprocessing.get_context("fork").Pool(self.jobs) as pool:
            yield from pool.imap_unordered(_measure, tasks)


def _say(words: str, end: str = "") -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end=end, file=sys.stderr, flush=True)
