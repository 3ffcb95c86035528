"""Time of one call to each part of the native policy, at the size of a large fleet, called from Python.

Writes `loadtests/results/policy_parts.{json,md}`. The row "call" is what calling from Python costs by itself; the
policy calls these parts from C++ and does not pay it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sage_native._native import LengthHistogram, OnlineCost, PrefixIndex, QuantileFactor, SpeedFactor

RESULTS = Path(__file__).parents[1] / "results"
NUM_INSTANCES = 64
BLOCKS_PER_INSTANCE = 20_000
CHAIN_BLOCKS = 170
SHARED_BLOCKS = 20  # of a chain: a system prompt
NUM_CHAINS = 8_000
PRIOR = [0.0169, 4.2e-5, 1.49e-7, 0.0142, 7.7e-5, 3.4e-7, 5.4e-9, 5e-6, 0.0]

Blocks = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Row:
    """Microseconds per call of one operation."""

    operation: str
    num_calls: int
    p50: float
    p99: float


def timed(operation: str, call: Callable[..., object], arguments: Iterable[tuple[object, ...]]) -> Row:
    """Time each call by itself; what `arguments` does to yield the next ones is not part of it."""
    gc.collect()
    gc.disable()
    times = []
    for values in arguments:
        started = time.perf_counter_ns()
        call(*values)
        times.append((time.perf_counter_ns() - started) / 1000)
    gc.enable()
    p50, p99 = np.percentile(times, [50, 99])
    return Row(operation, len(times), round(float(p50), 2), round(float(p99), 2))


def make_chains(rng: np.random.Generator) -> list[Blocks]:
    """Make chains of which every 40th begins alike."""
    shared = rng.integers(0, 2**64, (40, SHARED_BLOCKS), dtype=np.uint64)
    own = rng.integers(0, 2**64, (NUM_CHAINS, CHAIN_BLOCKS - SHARED_BLOCKS), dtype=np.uint64)
    return [np.concatenate([shared[number % 40], tail]) for number, tail in enumerate(own)]


def prefix_rows(num_calls: int) -> tuple[list[Row], dict[str, int]]:
    """Time the prefix index with every cache full and evicting."""
    rng = random.Random(1)
    chains = make_chains(np.random.default_rng(1))
    index = PrefixIndex(BLOCKS_PER_INSTANCE)
    for instance in range(NUM_INSTANCES):
        index.add_instance(instance)
    while any(index.num_blocks(instance) < BLOCKS_PER_INSTANCE for instance in range(NUM_INSTANCES)):
        for instance in range(NUM_INSTANCES):
            index.insert(instance, rng.choice(chains))
    # A chain that every instance holds whole: the walk that cannot stop early.
    for instance in range(NUM_INSTANCES):
        index.insert(instance, chains[0])

    some = [rng.choice(chains) for _ in range(num_calls)]
    rows = [
        timed("call", index.slot, [(0,)] * num_calls),
        timed("match_all, any chain", index.match_all, [(chain,) for chain in some]),
        timed("match_all, held by all", index.match_all, [(chains[0],)] * num_calls),
        timed("matched", index.matched, [(7, chain) for chain in some]),
        timed("insert", index.insert, [(rng.randrange(NUM_INSTANCES), chain) for chain in some]),
    ]
    return rows, {"distinct_blocks": index.num_distinct, "prefix_index_bytes": index.num_bytes}


def length_rows(num_calls: int) -> list[Row]:
    """Time the histogram with 1,000 keys: answers after a record, and between records."""
    rng = random.Random(2)
    histogram = LengthHistogram()
    keys = [(number % 50, number, number % 4) for number in range(1000)]
    records = [(rng.choice(keys), round(rng.lognormvariate(5.3, 1))) for _ in range(num_calls)]

    questions = [(*key, 0.9, 4096, 30) for key, _ in records]

    def after_record() -> Iterator[tuple[object, ...]]:
        for (key, length), question in zip(records, questions, strict=True):
            histogram.record(*key, length)
            yield question

    return [
        timed("record a length", histogram.record, [(*key, length) for key, length in records]),
        timed("length quantile after a record", histogram.quantile, after_record()),
        timed("length quantile", histogram.quantile, questions),
        timed("length mean", histogram.mean, [(*key, 4096, 30) for key, _ in records]),
    ]


def learning_rows(num_calls: int) -> list[Row]:
    """Time one observation of each learner, and reading a cost after one."""
    rng = random.Random(3)
    cost, speed, quantile = OnlineCost(PRIOR), SpeedFactor(), QuantileFactor()
    steps = [
        (float(prefill), rng.uniform(1, 200), rng.uniform(1, 1e5), float(prefill**2), rng.uniform(0.02, 0.3))
        for prefill in (rng.randint(1, 2048) for _ in range(num_calls))
    ]
    ratios = [(1.0, rng.uniform(0.5, 1.5)) for _ in range(num_calls)]

    def after_step() -> Iterator[tuple[object, ...]]:
        for step in steps:
            cost.observe_mixed(*step)
            yield ()

    return [
        timed("observe a mixed step", cost.observe_mixed, steps),
        timed("cost after a step", lambda: cost.cost, after_step()),
        timed("observe a speed", speed.observe, ratios),
        timed("observe a quantile", quantile.observe, ratios),
    ]


def main() -> None:
    """Run all and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="timed calls of each operation")
    num_calls: int = parser.parse_args().calls
    rows, sizes = prefix_rows(num_calls)
    rows += length_rows(num_calls) + learning_rows(num_calls)
    facts = {
        "instances": NUM_INSTANCES,
        "blocks_per_instance": BLOCKS_PER_INSTANCE,
        "chain_blocks": CHAIN_BLOCKS,
        **sizes,
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    (RESULTS / "policy_parts.json").write_text(
        json.dumps({"facts": facts, "microseconds": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    lines = ["| operation | calls | p50 us | p99 us |", "|---|---|---|---|"]
    lines += [f"| {r.operation} | {r.num_calls} | {r.p50} | {r.p99} |" for r in rows]
    table = "\n".join(lines)
    (RESULTS / "policy_parts.md").write_text(
        "# Parts of the native policy: microseconds per call\n\n"
        "`python loadtests/scheduling/policy_parts.py`\n\n"
        f"{NUM_INSTANCES} instances with {BLOCKS_PER_INSTANCE} blocks each ({sizes['distinct_blocks']} distinct, "
        f"{sizes['prefix_index_bytes'] / 1e6:.0f} MB in all), chains of {CHAIN_BLOCKS} blocks, all caches full.\n\n"
        f"{table}\n"
    )
    print(table)


if __name__ == "__main__":
    main()
