"""Try weights on the TRAINING half: capacity, overload and the reasons of misses, in seconds.

    python loadtests/scheduling/tune.py conv-mixed hybrid lmetric least-outstanding+hold --set harm_weight=3

Never reads the test half: tables for publication come from `make bench-scheduling`.
"""

from __future__ import annotations

import argparse
import ast
import time
from typing import Any

import numpy as np
from cells import Overload, capacity_step, misses_of, overload_of
from scenarios import SCENARIOS, Scenario, fleet_of, workload_of
from search import STEP, rate_at, step_near

from sage_simulator.policies import PolicyChoice, policy_choice
from sage_simulator.runner import simulate

_HALF = "train"


def main() -> None:
    """Print one line per policy and scenario."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", help=f"`all`, or comma-separated: {', '.join(SCENARIOS)}")
    parser.add_argument("policies", nargs="+", help="names with switches: hybrid, lmetric+hold, …")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="option of hybrid* only"
    )
    parser.add_argument("--set-all", action="append", default=[], metavar="KEY=VALUE", help="of every policy")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--overload-rate", type=float, help="runs/s; else 2 x the best policy's capacity for these classes"
    )
    parser.add_argument("--no-overload", action="store_true")
    arguments = parser.parse_args()
    names = list(SCENARIOS) if arguments.scenario == "all" else arguments.scenario.split(",")
    weights, for_all = _options(arguments.set), _options(arguments.set_all)
    policies = [
        policy_choice(name, **for_all, **(weights if name.startswith("hybrid") else {}))
        for name in arguments.policies
    ]
    for name in names:
        _try(SCENARIOS[name], policies, range(arguments.seeds), arguments)


def _options(pairs: list[str]) -> dict[str, Any]:
    return {key: ast.literal_eval(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def _try(
    scenario: Scenario, policies: list[PolicyChoice], seeds: range, arguments: argparse.Namespace
) -> None:
    steps: dict[str, list[int]] = {}
    began = time.monotonic()
    for policy in policies:
        start, found = step_near(scenario.guess), []
        for seed in seeds:
            start = capacity_step(scenario, _HALF, policy, seed, start)
            found.append(start)
        steps[policy.name] = found
    best = max(float(np.mean([rate_at(step) for step in found])) for found in steps.values())
    leader = max(policies, key=lambda policy: float(np.mean([rate_at(step) for step in steps[policy.name]])))
    rate = arguments.overload_rate or 2 * rate_at(
        capacity_step(scenario, _HALF, leader, 0, steps[leader.name][0], overload=True)
    )
    overloads: dict[str, list[Overload]] = {}
    if not arguments.no_overload:
        for policy in policies:
            overloads[policy.name] = [overload_of(scenario, _HALF, policy, seed, rate) for seed in seeds]
    print(
        f"\n{scenario.name}: {len(seeds)} seeds of {scenario.num_runs} runs, training half; "
        f"overload {rate:.2f}/s; {time.monotonic() - began:.1f} s"
    )
    print(
        f"{'policy':34} {'capacity':>8} {'of best':>8} {'by seed':22} {'goodput':>8} {'attained':>8} "
        f"{'tight':>6} {'relaxed':>7} {'shed':>5}   misses 4 % above its capacity"
    )
    for policy in policies:
        rates = [rate_at(step) for step in steps[policy.name]]
        mean = float(np.mean(rates))
        line = f"{policy.name:34} {mean:8.2f} {mean / best:8.3f} {' '.join(f'{r:.1f}' for r in rates):22} "
        over = overloads.get(policy.name, [])
        for field, form in (
            ("goodput", "8.2f"), ("attainment", "8.3f"), ("tight", "6.2f"), ("relaxed", "7.2f"), ("shed", "5.2f"),
        ):  # fmt: skip
            value = float(np.mean([getattr(one, field) for one in over])) if over else float("nan")
            line += f"{value:{form}} "
        print(f"{line}  {_misses(scenario, policy, seeds[0], rates[0] * STEP**2)}")


def _misses(scenario: Scenario, policy: PolicyChoice, seed: int, rate: float) -> str:
    workload = workload_of(scenario, _HALF, seed, rate)
    outcome = simulate(workload, fleet_of(scenario.fleet), policy, seed=seed)
    found = misses_of(scenario, outcome)
    where = " ".join(f"{group}:{count}" for group, count in found.by_group.items())
    return f"shed {found.shed} ttft {found.ttft} tpot {found.tpot} of {found.submitted}; {where}"


if __name__ == "__main__":
    main()
