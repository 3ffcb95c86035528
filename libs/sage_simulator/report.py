"""The report of one simulation: everything that is measured, as structs that are written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan, nan
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

import sage_native
from sage_policy.configured import SHED_CODES
from sage_simulator.fairness import OUTPUT_WEIGHT, Fairness, Served, fairness
from sage_simulator.fleet import Fleet
from sage_simulator.metrics import Level, Percentiles, RunTimes, level, of_histogram, percentiles
from sage_simulator.workload import Workload

__all__ = ["InstanceUse", "PoolUse", "Report", "build_report"]

MAX_TENANTS: Final = 64
"""Tenants with a level of their own; those with most runs."""


class PoolUse(msgspec.Struct, frozen=True):
    """One pool's stages. `cached_share`: prompt tokens that were not computed again, of those of dispatched stages.

    `retries`: dispatches after the first. `shed`: stages by the code with which they were refused. `ttft_error`: actual
    over predicted time from dispatch to first token (batch work: to its end), where the policy predicted one.
    """

    submitted: int
    finished: int
    retries: int
    shed: dict[str, int]
    cached_share: float
    queue: Percentiles
    engine: Percentiles
    ttft_error: Percentiles


class InstanceUse(msgspec.Struct, frozen=True):
    """One instance. `busy_share` is of the time until the last event; `lost`: requests that died with it."""

    name: str
    pool: str
    busy_share: float
    steps: int
    preemptions: int
    generated_tokens: int
    cached_tokens: int
    finished: int
    lost: int


class Report(msgspec.Struct, frozen=True):
    """One workload on one fleet under one policy; the formulas are in `sage_simulator.metrics`.

    `rate`: runs submitted per second of `span`. `itl`: gaps between tokens, all requests pooled. `decision`: wall time
    of the policy's calls, empty unless it was measured. `usd_per_1000_good`: price of the fleet over `span` per 1,000
    good runs. A report that `stopped_early` says only that attainment was below what was asked.
    """

    policy: str
    trace: str
    fleet: str
    seed: int
    rate: float
    span: float
    overall: Level
    classes: dict[str, Level]
    tenants: dict[str, Level]
    pools: dict[str, PoolUse]
    instances: list[InstanceUse]
    fairness: Fairness
    itl: Percentiles
    decision: Percentiles
    usd_per_hour: float
    usd_per_1000_good: float
    num_unservable: int
    num_events: int
    wall_seconds: float
    stopped_early: bool


def build_report(
    workload: Workload,
    fleet: Fleet,
    times: RunTimes,
    stages: Mapping[str, npt.NDArray[Any]],
    result: sage_native.SimulationResult,
    *,
    policy: str,
    seed: int,
) -> Report:
    """Return the report of a native result; `stages` are its per-stage columns by name."""
    overall = level(times, workload.span)
    hours = workload.span / 3600
    has_no_rate = overall.good == 0 or isnan(workload.rate)
    return Report(
        policy=policy,
        trace=workload.name,
        fleet=fleet.name,
        seed=seed,
        rate=workload.rate,
        span=workload.span,
        overall=overall,
        classes=_by_label(workload, times, workload.work_class.code, workload.work_class.names),
        tenants=_by_label(workload, times, workload.tenant.code, workload.tenant.names),
        pools=_pools(workload, stages),
        instances=_instances(fleet, result),
        fairness=_fairness(workload, times, stages),
        itl=of_histogram(result.histogram_edges, result.itl_counts),
        decision=of_histogram(result.histogram_edges, result.decision_counts),
        usd_per_hour=fleet.usd_per_hour,
        usd_per_1000_good=nan if has_no_rate else fleet.usd_per_hour * hours / overall.good * 1000,
        num_unservable=workload.num_unservable,
        num_events=result.num_events,
        wall_seconds=result.wall_seconds,
        stopped_early=result.stopped_early,
    )


def _by_label(
    workload: Workload, times: RunTimes, code: npt.NDArray[np.uint32], names: tuple[str, ...]
) -> dict[str, Level]:
    counts = np.bincount(code, minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:MAX_TENANTS]
    return {
        names[number]: level(times, workload.span, code == number)
        for number in sorted(order.tolist())
        if counts[number]
    }


def _pools(workload: Workload, stages: Mapping[str, npt.NDArray[Any]]) -> dict[str, PoolUse]:
    found = {}
    start = np.where(np.isnan(stages["first_token_at"]), stages["finished_at"], stages["first_token_at"])
    actual = start - stages["dispatched_at"]
    for number in np.unique(workload.pool).tolist():
        rows = workload.pool == number
        outcome = stages["outcome"][rows]
        was_submitted = ~np.isnan(stages["submitted_at"][rows])
        was_dispatched = ~np.isnan(stages["dispatched_at"][rows])
        prompt = int(workload.prompt_tokens[rows][was_dispatched].sum())
        codes = np.bincount(stages["code"][rows][was_submitted & (outcome == 1)], minlength=len(SHED_CODES))
        found[workload.pools[number]] = PoolUse(
            submitted=int(was_submitted.sum()),
            finished=int((outcome == 0).sum()),
            retries=int(np.maximum(stages["num_attempts"][rows].astype(np.int64) - 1, 0).sum()),
            shed={code: int(count) for code, count in zip(SHED_CODES, codes, strict=True) if count},
            cached_share=float(stages["cached_tokens"][rows].sum()) / prompt if prompt else 0.0,
            queue=percentiles(stages["dispatched_at"][rows] - stages["submitted_at"][rows]),
            engine=percentiles(stages["finished_at"][rows] - stages["dispatched_at"][rows]),
            ttft_error=percentiles(_ratio(actual[rows], stages["predicted_ttft"][rows])),
        )
    return found


def _ratio(actual: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(predicted > 0, actual / np.where(predicted > 0, predicted, 1.0), nan)


def _instances(fleet: Fleet, result: sage_native.SimulationResult) -> list[InstanceUse]:
    until = result.ended_at if result.ended_at > 0 else 1.0
    return [
        InstanceUse(
            name=instance.name,
            pool=instance.pool,
            busy_share=float(result.instance_busy_seconds[number]) / until,
            steps=int(result.instance_num_steps[number]),
            preemptions=int(result.instance_num_preemptions[number]),
            generated_tokens=int(result.instance_num_generated[number]),
            cached_tokens=int(result.instance_cached_tokens[number]),
            finished=int(result.instance_num_finished[number]),
            lost=int(result.instance_num_lost[number]),
        )
        for number, instance in enumerate(fleet.instances)
    ]


def _fairness(workload: Workload, times: RunTimes, stages: Mapping[str, npt.NDArray[Any]]) -> Fairness:
    names = workload.tenant.names
    submitted = np.bincount(workload.tenant.code, minlength=len(names)).astype(np.float64)
    good = np.bincount(workload.tenant.code, weights=times.is_good, minlength=len(names))
    attainment = np.where(submitted > 0, good / np.maximum(submitted, 1), nan)
    last = workload.last_stage
    cached = stages["cached_tokens"].astype(np.float64)
    uncached = np.add.reduceat(workload.prompt_tokens - cached, workload.stage_start[:-1].astype(np.int64))
    finished_at = stages["finished_at"][last]
    first_token_at = np.where(workload.output_tokens[last] == 0, finished_at, stages["first_token_at"][last])
    served = Served(
        tenant=workload.tenant.code,
        submitted_at=workload.arrival,
        first_token_at=first_token_at,
        finished_at=finished_at,
        is_waiting_for_ever=(times.outcome == 3) & np.isnan(first_token_at),
        prompt_cost=uncached,
        output_cost=OUTPUT_WEIGHT * stages["num_tokens"][last].astype(np.float64),
    )
    return fairness(names, served, attainment)
