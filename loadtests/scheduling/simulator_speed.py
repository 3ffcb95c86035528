"""How many requests the simulator runs per minute of wall time on one core, on a fleet of 100 instances.

    python loadtests/scheduling/simulator_speed.py

Requests of Azure's conversation trace, enough of them to keep the fleet at about two thirds of its capacity. The figure
counts everything from the workload's columns to the report. Exit code 1 below 1,000,000 a minute for any policy.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import msgspec
import numpy as np
from scenarios import MAX_TOKENS, SCENARIOS, fleet_of, slice_of

from sage_simulator.resampling import Resampling
from sage_simulator.runner import simulate
from sage_simulator.shaping import at_rate, limited
from sage_simulator.traces import Labels, Trace
from sage_simulator.workload import WorkloadOptions, build_workload

__all__ = ["BUDGET", "POLICIES", "Speed", "speeds"]

BUDGET = 1_000_000
POLICIES = ("hybrid", "lmetric", "dynamo-cost", "least-outstanding", "least-outstanding+hold", "power-of-two")
NUM_RUNS = 50_000
RATE = 350.0
FLEET = "rtx4090-x60-rtxpro6000-x40"


class Speed(msgspec.Struct, frozen=True):
    """One policy: requests per minute and events per second of wall time, and what was attained meanwhile."""

    policy: str
    requests: int
    requests_per_minute: float
    events_per_second: float
    attainment: float


def speeds(num_runs: int = NUM_RUNS) -> list[Speed]:
    """Run every policy once."""
    fleet = fleet_of(FLEET)
    # The test half holds 9,700 requests: as many resamplings of it as are needed, one after the other.
    parts = [
        slice_of(SCENARIOS["conv-mixed"].trace, "test", seed, num_runs)
        for seed in range(num_runs // 9000 + 1)
    ]
    trace = at_rate(limited(followed(parts), num_runs), RATE)
    options = WorkloadOptions(
        seed=0,
        resampling=Resampling.NONE,
        classes=SCENARIOS["conv-mixed"].classes(overload=False),
        max_tokens=MAX_TOKENS,
    )
    found = []
    for policy in POLICIES:
        began = time.perf_counter()
        workload = build_workload(trace, fleet, options)
        report = simulate(workload, fleet, policy, seed=0).report
        seconds = time.perf_counter() - began
        found.append(
            Speed(
                policy,
                len(workload),
                len(workload) / seconds * 60,
                report.num_events / seconds,
                report.overall.attainment,
            )
        )
    return found


def followed(traces: list[Trace]) -> Trace:
    """Return the traces one after the other; none of them knows sessions or prefixes."""
    first, *others = traces
    for other in others:
        arrival = np.concatenate([first.arrival, other.arrival + first.span])
        stages = replace(
            first.stages,
            pool=np.zeros(len(arrival), np.uint32),
            prompt_tokens=np.concatenate([first.stages.prompt_tokens, other.stages.prompt_tokens]),
            output_tokens=np.concatenate([first.stages.output_tokens, other.stages.output_tokens]),
            items=np.ones(len(arrival), np.uint32),
            block_start=np.zeros(len(arrival) + 1, np.int64),
        )
        first = replace(
            first,
            arrival=arrival,
            span=first.span + other.span,
            tenant=Labels.same("default", len(arrival)),
            route=Labels.same("", len(arrival)),
            session=np.arange(len(arrival), dtype=np.int64),
            stage_start=np.arange(len(arrival) + 1, dtype=np.int64),
            stages=stages,
        )
    return first


def main() -> None:
    """Print a line per policy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=NUM_RUNS)
    found = speeds(parser.parse_args().runs)
    for one in found:
        print(
            f"{one.policy:24} {one.requests_per_minute:12,.0f} requests/min {one.events_per_second:12,.0f} events/s"
            f"   attainment {one.attainment:.3f}"
        )
    sys.exit(int(any(one.requests_per_minute < BUDGET for one in found)))


if __name__ == "__main__":
    main()
