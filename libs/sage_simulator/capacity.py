"""The highest rate that a policy sustains: bisection over the rate, simulations cut short once they must fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from sage_core import ConfigurationError
from sage_simulator.fleet import Fleet
from sage_simulator.policies import PolicyChoice, policy_choice
from sage_simulator.runner import simulate
from sage_simulator.workload import Workload

__all__ = ["Capacity", "Probe", "capacity"]


class Probe(msgspec.Struct, frozen=True):
    """One rate that was tried. `attainment` is over all seeds; an upper bound where `is_sustained` is False."""

    rate: float
    is_sustained: bool
    attainment: float


class Capacity(msgspec.Struct, frozen=True):
    """`rate`: highest rate found with attainment >= `target`; 0 where even `low` failed.

    `goodput` is that at `rate`. `is_lower_bound`: `high` was sustained, so the true capacity is at least that.
    """

    policy: str
    target: float
    rate: float
    goodput: float
    is_lower_bound: bool
    probes: list[Probe]


def capacity(
    make_workload: Callable[[float, int], Workload],
    fleet: Fleet,
    policy: str | PolicyChoice,
    *,
    target: float = 0.99,
    low: float,
    high: float,
    tolerance: float = 0.02,
    seeds: Sequence[int] = (0,),
) -> Capacity:
    """Return the highest rate in low..high at which good / submitted >= `target`, over all seeds together.

    `make_workload(rate, seed)`: the work at a rate. Bisection takes sustaining to be monotone in the rate and ends when
    the bracket is narrower than `tolerance` times its lower end. A simulation stops as soon as too many of the runs of
    all seeds are bad. Raises ConfigurationError for bounds that are none.
    """
    if not 0 < low <= high or not 0 < target <= 1 or not tolerance > 0 or not seeds:
        raise ConfigurationError(
            f"capacity from {low:g} to {high:g} at {target:g}; expected 0 < low <= high, a target in 0..1 and seeds"
        )
    choice = policy_choice(policy) if isinstance(policy, str) else policy
    probes: list[Probe] = []
    goodputs: dict[float, float] = {}

    def is_sustained(rate: float) -> bool:
        probe, goodput = _probe(make_workload, fleet, choice, rate, target, seeds)
        probes.append(probe)
        goodputs[rate] = goodput
        return probe.is_sustained

    def found(rate: float, *, is_lower_bound: bool = False) -> Capacity:
        return Capacity(choice.name, target, rate, goodputs.get(rate, 0.0), is_lower_bound, probes)

    if not is_sustained(low):
        return found(0.0)
    if is_sustained(high):
        return found(high, is_lower_bound=True)
    best, worst = low, high
    while worst - best > tolerance * best:
        middle = (best + worst) / 2
        if is_sustained(middle):
            best = middle
        else:
            worst = middle
    return found(best)


def _probe(
    make_workload: Callable[[float, int], Workload],
    fleet: Fleet,
    policy: PolicyChoice,
    rate: float,
    target: float,
    seeds: Sequence[int],
) -> tuple[Probe, float]:
    workloads = [(seed, make_workload(rate, seed)) for seed in seeds]
    submitted = sum(len(workload) for _, workload in workloads)
    # The smallest number of bad runs that breaks the target, computed without dividing: 0.99 * 100 is not 99 exactly.
    allowed = int((1 - target) * submitted + 1e-9)
    bad, goodput = 0, 0.0
    for seed, workload in workloads:
        report = simulate(workload, fleet, policy, seed=seed, max_bad=allowed - bad + 1).report
        bad += (
            report.overall.submitted - report.overall.good if not report.stopped_early else allowed - bad + 1
        )
        goodput += report.overall.goodput / len(seeds)
        if bad > allowed:
            return Probe(rate, False, 1 - bad / submitted), goodput
    return Probe(rate, True, 1 - bad / submitted), goodput
