"""What the comparison says about the aims: ratios with their spread over seeds, met or missed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Final

import msgspec
import numpy as np
from compare import Comparison
from plan import AIMS, HYBRID, PUSH, has_shedding, is_ablation
from scenarios import SCENARIOS
from search import rate_at

__all__ = ["Claim", "Ratio", "capacity_of", "claims", "ratio_of"]

_STUDENT_T: Final = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Two-sided 95 % quantiles by degrees of freedom."""


class Ratio(msgspec.Struct, frozen=True):
    """A ratio of ours to another's: of the means over seeds, and the 95 % interval of the paired ratio."""

    mean: float
    low: float
    high: float
    other: str


class Claim(msgspec.Struct, frozen=True):
    """An aim on one scenario."""

    aim: str
    scenario: str
    wanted: float
    found: Ratio
    is_met: bool


def capacity_of(comparison: Comparison, scenario: str, policy: str) -> list[float]:
    """Return the capacity on each seed, in runs per second."""
    return [rate_at(step) for step in comparison.steps[scenario][policy]]


def ratio_of(ours: Sequence[float], theirs: Sequence[float], other: str) -> Ratio:
    """Return the ratio of the means; the interval is that of the geometric mean of the seeds' ratios (Student's t)."""
    mean = float(np.mean(ours) / np.mean(theirs)) if np.mean(theirs) > 0 else float("inf")
    logs = np.log(np.maximum(ours, 1e-12)) - np.log(np.maximum(theirs, 1e-12))
    if len(logs) < 2:
        return Ratio(mean, mean, mean, other)
    spread = _STUDENT_T.get(len(logs) - 1, 2.0) * float(np.std(logs, ddof=1)) / sqrt(len(logs))
    middle = float(np.mean(logs))
    return Ratio(mean, float(np.exp(middle - spread)), float(np.exp(middle + spread)), other)


def claims(comparison: Comparison) -> list[Claim]:
    """Return one line per aim and scenario that it concerns; the comparison must have all baselines."""
    found = []
    for name, policies in comparison.steps.items():
        scenario = SCENARIOS[name]
        baselines = [policy for policy in policies if policy != HYBRID and not is_ablation(policy)]
        if scenario.is_mixed:
            pushing = [policy for policy in baselines if policy in PUSH]
            found.append(_capacity_claim(comparison, "push", name, pushing))
        if scenario.repeats_prefixes:
            found += [
                _capacity_claim(comparison, "prefixes", name, [policy])
                for policy in ("lmetric", "dynamo-cost")
                if policy in policies
            ]
        not_shedding = [policy for policy in baselines if not has_shedding(policy)]
        found.append(_overload_claim(comparison, "overload", name, not_shedding))
        found.append(
            _overload_claim(comparison, "overload-push", name, [p for p in not_shedding if p in PUSH])
        )
        found.append(_capacity_claim(comparison, "worst", name, baselines))
    return found


def _capacity_claim(comparison: Comparison, aim: str, scenario: str, others: Iterable[str]) -> Claim:
    ours = capacity_of(comparison, scenario, HYBRID)
    best = max(others, key=lambda policy: float(np.mean(capacity_of(comparison, scenario, policy))))
    ratio = ratio_of(ours, capacity_of(comparison, scenario, best), best)
    return Claim(aim, scenario, AIMS[aim], ratio, ratio.mean >= AIMS[aim])


def _overload_claim(comparison: Comparison, aim: str, scenario: str, others: Iterable[str]) -> Claim:
    overloads = comparison.overloads[scenario]

    def goodput(policy: str) -> list[float]:
        return [one.goodput for one in overloads[policy]]

    best = max(others, key=lambda policy: float(np.mean(goodput(policy))))
    ratio = ratio_of(goodput(HYBRID), goodput(best), best)
    return Claim(aim, scenario, AIMS[aim], ratio, ratio.mean >= AIMS[aim])
