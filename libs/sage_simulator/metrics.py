"""What a simulation is judged by. Every figure says its formula; latencies count from the SCHEDULED send of a run.

Per run, `arrival` being its scheduled send (open loop: arrivals are fixed in advance):
  TTFT = first token of the last stage - arrival; where a run ends in batch work (embed, rerank): TTFT = E2E
  E2E  = last token of the last stage - arrival
  TPOT = (E2E - TTFT) / (output tokens - 1), for runs with two or more output tokens
  queue time  = sum over stages of (dispatch - submit);  engine time = sum over stages of (end - dispatch)
  good = finished, and TTFT, TPOT and E2E within the targets of its class, and done within its caller's budget
  attainment = good / SUBMITTED (what was shed, failed or never ended is bad);  goodput = good / seconds of arrivals,
  NaN where there is one run only, or all arrive in one moment
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from sage_simulator.traces.trace import Floats
from sage_simulator.workload import Workload

__all__ = [
    "OUTCOMES",
    "Level",
    "Percentiles",
    "RunTimes",
    "level",
    "of_histogram",
    "percentiles",
    "run_times",
]

OUTCOMES: Final = ("finished", "shed", "failed", "unfinished")
"""What became of a run, in the order of their numbers."""

_TOLERANCE: Final = 1e-9
"""Seconds by which sums of floating point times may pass a target."""


class Percentiles(msgspec.Struct, frozen=True):
    """A distribution: linear interpolation between order statistics. `count` values; NaN where there is none."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Level(msgspec.Struct, frozen=True):
    """What a group of runs got. TTFT counts every run that had a first token; the other times finished runs only."""

    submitted: int
    finished: int
    shed: int
    failed: int
    unfinished: int
    good: int
    attainment: float
    goodput: float
    ttft: Percentiles
    tpot: Percentiles
    e2e: Percentiles
    queue: Percentiles
    engine: Percentiles


@dataclass(frozen=True, slots=True, eq=False)
class RunTimes:
    """One row per run; float64, NaN where it never came to that. `outcome`: index into `OUTCOMES`."""

    ttft: Floats
    tpot: Floats
    e2e: Floats
    queue: Floats
    engine: Floats
    outcome: npt.NDArray[np.uint8]
    is_good: npt.NDArray[np.bool_]


def run_times(workload: Workload, stages: Mapping[str, npt.NDArray[Any]]) -> RunTimes:
    """Return the times of each run. `stages`: the per-stage columns of the native result, by name."""
    last = workload.last_stage
    first_stage = workload.stage_start[:-1].astype(np.int64)
    outcome = _worst(stages["outcome"], first_stage)
    is_finished = outcome == 0
    e2e = np.where(is_finished, stages["finished_at"][last] - workload.arrival, nan)
    output = workload.output_tokens[last]
    ttft = np.where(output == 0, e2e, stages["first_token_at"][last] - workload.arrival)
    gaps = np.maximum(output.astype(np.int64) - 1, 0)
    tpot = np.where(is_finished & (gaps > 0), (e2e - ttft) / np.maximum(gaps, 1), nan)
    queue = np.add.reduceat(stages["dispatched_at"] - stages["submitted_at"], first_stage)
    engine = np.add.reduceat(stages["finished_at"] - stages["dispatched_at"], first_stage)
    is_good = (
        is_finished
        & _within(ttft, workload.ttft_slo[last])
        & _within(tpot, workload.tpot_slo[last])
        & _within(e2e, workload.e2e_slo[last])
        & _within(e2e, workload.budget)
    )
    return RunTimes(
        ttft=ttft,
        tpot=tpot,
        e2e=e2e,
        queue=np.where(is_finished, queue, nan),
        engine=np.where(is_finished, engine, nan),
        outcome=outcome,
        is_good=is_good,
    )


def level(times: RunTimes, span: float, rows: npt.NDArray[np.bool_] | None = None) -> Level:
    """Return what the runs `rows` (None: all) got; `span`: seconds of arrivals."""
    chosen = np.ones(len(times.outcome), np.bool_) if rows is None else rows
    counts = np.bincount(times.outcome[chosen], minlength=len(OUTCOMES))
    submitted, good = int(chosen.sum()), int(times.is_good[chosen].sum())
    return Level(
        submitted=submitted,
        finished=int(counts[0]),
        shed=int(counts[1]),
        failed=int(counts[2]),
        unfinished=int(counts[3]),
        good=good,
        attainment=good / submitted if submitted else nan,
        goodput=good / span if span > 0 and len(times.outcome) > 1 else nan,
        ttft=percentiles(times.ttft[chosen]),
        tpot=percentiles(times.tpot[chosen]),
        e2e=percentiles(times.e2e[chosen]),
        queue=percentiles(times.queue[chosen]),
        engine=percentiles(times.engine[chosen]),
    )


def percentiles(values: Floats) -> Percentiles:
    """Return the distribution of the values that are not NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Percentiles(0, nan, nan, nan, nan, nan, nan)
    p50, p90, p95, p99 = np.percentile(known, (50, 90, 95, 99)).tolist()
    return Percentiles(len(known), float(known.mean()), p50, p90, p95, p99, float(known.max()))


def of_histogram(edges: Floats, counts: npt.NDArray[np.uint64]) -> Percentiles:
    """Return the distribution of a histogram: linear inside a bin, `max` the upper edge of the last one in use."""
    total = int(counts.sum())
    if total == 0:
        return Percentiles(0, nan, nan, nan, nan, nan, nan)
    reached = np.cumsum(counts.astype(np.float64))
    wanted = np.array((0.5, 0.9, 0.95, 0.99)) * total
    bins = np.searchsorted(reached, wanted)
    inside = (wanted - (reached[bins] - counts[bins])) / counts[bins]
    p50, p90, p95, p99 = (edges[bins] + inside * (edges[bins + 1] - edges[bins])).tolist()
    mean = float(np.sum(counts * (edges[:-1] + edges[1:]) / 2) / total)
    return Percentiles(total, mean, p50, p90, p95, p99, float(edges[np.flatnonzero(counts)[-1] + 1]))


def _worst(outcome: npt.NDArray[np.uint8], first_stage: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """A run is what stopped it: a stage that never began (unfinished) says nothing where an earlier one was shed."""
    found = np.zeros(len(first_stage), np.uint8)
    for number in (3, 2, 1):
        has_it = np.maximum.reduceat((outcome == number).astype(np.uint8), first_stage)
        found[has_it > 0] = number
    return found


def _within(values: Floats, limits: Floats) -> npt.NDArray[np.bool_]:
    """True where a value keeps its limit; what does not exist (NaN: the TPOT of one token) breaks none."""
    return np.isnan(values) | (values <= limits + _TOLERANCE)
