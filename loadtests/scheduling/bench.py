"""The scheduling experiments: one command measures everything and writes `loadtests/results/scheduling.*`.

    python loadtests/scheduling/bench.py                     # about half an hour on two cores
    python loadtests/scheduling/bench.py --quick             # 2 seeds, main policies, no files in results
    python loadtests/scheduling/bench.py --only conv-mixed   # one scenario; may be repeated

Finished measurements are kept in build/scheduling.jsonl under a digest of the code that made them: an interrupted run
goes on where it was, and a changed policy is measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from claims import capacity_of, claims
from compare import Comparison, compare
from curves import curves_of
from document import Measured, written
from embedding import BatchPoint, MixPoint, batch_points, equal_latency_rates, mix_points
from figures import attainment_figure, capacity_figure
from plan import HYBRID, MAIN, POLICIES
from scenarios import SCENARIOS
from simulator_speed import Speed, speeds
from store import Store, fingerprint
from tenants import Aggression, Backlog, aggression, backlogs

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "loadtests" / "results"
STORE: Final = ROOT / "build" / "scheduling.jsonl"
BATCH_RATES: Final = (50.0, 75.0, 100.0, 150.0, 200.0, 250.0)
LATENCY_LIMIT: Final = 0.1
"""Seconds of p99 at which the throughput of the ways to form batches is compared."""
MIX_LOADS: Final = ((0.5, 300.0), (0.8, 300.0), (0.8, 1000.0))
"""(share of our capacity for chat alone, embeddings/s)."""
LOADS: Final = (0.6, 0.9)
"""Shares of our capacity that the tenants fill before one of them grows."""


def main() -> None:
    """Measure, write, and print the aims."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="scenario; may be repeated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="2 seeds and the policies of the figures")
    parser.add_argument("--train", action="store_true", help="on the half that weights were tuned on")
    parser.add_argument("--results", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    began = time.monotonic()
    is_whole = not (arguments.only or arguments.quick or arguments.train)
    scenarios = arguments.only or list(SCENARIOS)
    store, version = Store(STORE), fingerprint()
    half: Any = "train" if arguments.train else "test"
    seeds = 2 if arguments.quick else arguments.seeds
    policies = [name for name in POLICIES if name in MAIN] if arguments.quick else list(POLICIES)
    comparison = compare(scenarios, policies, seeds, half, store, version, arguments.jobs)
    rest = _others(comparison, store, version, range(seeds)) if "conv-mixed" in scenarios else None
    measured = Measured(
        comparison=comparison,
        claims=claims(comparison),
        rest=rest,
        version=version,
        half=half,
        machine=f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        seconds=time.monotonic() - began,
    )
    results = arguments.results or (RESULTS if is_whole else ROOT / "build" / "scheduling")
    results.mkdir(parents=True, exist_ok=True)
    capacity_figure(comparison, results / "scheduling_capacity.png")
    attainment_figure(
        curves_of(comparison, scenarios, half, store, version), results / "scheduling_attainment.png"
    )
    (results / "scheduling.json").write_text(_as_text(measured.as_json()))
    (results / "scheduling.md").write_text(written(measured))
    print((results / "scheduling.md").read_text() if not is_whole else written(measured, aims_only=True))
    print(f"{results / 'scheduling.md'}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def _others(comparison: Comparison, store: Store, version: str, seeds: range) -> dict[str, Any]:
    """Measure embedding, fairness and speed; they take their load from our capacity on conv-mixed."""
    capacity = float(np.mean(capacity_of(comparison, "conv-mixed", HYBRID)))

    def kept(name: str, kind: Any, measure: Callable[[], Any]) -> Any:
        key = f"{version}|{name}|{len(seeds)}|{capacity:.6g}"
        if key not in store:
            store.put(key, measure())
        return msgspec.convert(store[key], kind)

    return {
        "batching": kept("batching", list[BatchPoint], lambda: batch_points(BATCH_RATES, seeds)),
        "batching_rates": kept("equal", dict[str, float], lambda: equal_latency_rates(LATENCY_LIMIT, seeds)),
        "mix": kept("mix", list[MixPoint], lambda: _mix(capacity, seeds)),
        "backlogs": kept("backlogs", list[Backlog], lambda: backlogs(capacity, seeds)),
        "aggression": kept(
            "aggression",
            list[Aggression],
            lambda: [a for load in LOADS for a in aggression(capacity, load, seeds)],
        ),
        "speed": kept("speed", list[Speed], speeds),
    }


def _mix(capacity: float, seeds: Sequence[int]) -> list[MixPoint]:
    return [point for load, rate in MIX_LOADS for point in mix_points(round(load * capacity, 2), rate, seeds)]


def _as_text(value: Any, depth: int = 0) -> str:
    """Return JSON with a line for each member of the outer three levels, and five digits to each figure."""
    if isinstance(value, dict) and depth < 3:
        inner = ",\n".join(
            f"{' ' * (depth + 1)}{json.dumps(key)}: {_as_text(item, depth + 1)}"
            for key, item in value.items()
        )
        return f"{{\n{inner}\n{' ' * depth}}}" + ("\n" if depth == 0 else "")
    return json.dumps(_rounded(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
