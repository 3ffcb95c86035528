"""Attainment of the main policies over rates around the capacities found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from claims import capacity_of
from compare import Comparison
from figures import Curve
from plan import HYBRID, MAIN
from scenarios import SCENARIOS, Half, fleet_of, workload_of
from store import Store

from sage_simulator.runner import simulate

__all__ = ["curves_of"]

_NUM_RATES = 12
_SEEDS = (0, 1)


def curves_of(
    comparison: Comparison, scenarios: Sequence[str], half: Half, store: Store, version: str
) -> dict[str, list[Curve]]:
    """Return for each scenario the attainment of the main policies from 0.3 to 1.5 times our capacity."""
    found = {}
    for name in scenarios:
        ours = float(np.mean(capacity_of(comparison, name, HYBRID)))
        rates = [float(f"{ours * share:.4g}") for share in np.linspace(0.3, 1.5, _NUM_RATES)]
        found[name] = [
            (policy, rates, [_attainment(name, half, policy, rate, store, version) for rate in rates])
            for policy in MAIN
            if policy in comparison.steps[name]
        ]
    return found


def _attainment(name: str, half: Half, policy: str, rate: float, store: Store, version: str) -> float:
    key = f"{version}|curve|{name}|{half}|{policy}|{rate}"
    if key not in store:
        scenario = SCENARIOS[name]
        shares = [
            simulate(
                workload_of(scenario, half, seed, rate), fleet_of(scenario.fleet), policy, seed=seed
            ).report.overall.attainment
            for seed in _SEEDS
        ]
        store.put(key, float(np.mean(shares)))
    return float(store[key])
