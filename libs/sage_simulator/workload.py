"""From a trace to what the simulator runs: classes and their targets, deadlines, what callers claim, pools."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Final

import numpy as np
import numpy.typing as npt

import sage_native
from sage_core import ConfigurationError
from sage_simulator.fleet import Fleet
from sage_simulator.resampling import Resampling, resampled
from sage_simulator.shaping import Moment, at_rate, cut, with_tenants
from sage_simulator.slo_classes import DEFAULT_CLASSES, WorkClass
from sage_simulator.traces.trace import Floats, Ids, Indices, Labels, Trace

__all__ = ["Workload", "WorkloadOptions", "build_workload", "shaped"]

NEVER: Final = inf
_DEFAULT_MAX_TOKENS: Final = 4096
_DAY: Final = 86_400.0
_MAX_DAYS: Final = 150
"""Days of simulated time; the longest published trace has 121. Beyond it, times or the rate are a mistake."""
_MAX_REPORTS: Final = 10**9
"""Reports of engines in one simulation: each is an event, and ten millions of them take seconds."""


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """How a trace becomes a workload.

    `rate`: runs per second after compression of time, counting those that the fleet can hold; None: the trace's own.
    `begin`, `end`: the part of the trace, in its own time, before anything else. `seed`: which resampling; None: the
    trace as it is. `max_tokens`: what clients send as their limit; the true length is hidden behind it. `pools`: names
    in the trace → names in the fleet. `downstream_scale`: estimates of later stages are this times their unloaded time.
    """

    rate: float | None = None
    begin: Moment | None = None
    end: Moment | None = None
    seed: int | None = None
    resampling: Resampling = Resampling.AUTO
    classes: tuple[WorkClass, ...] = DEFAULT_CLASSES
    max_tokens: int = _DEFAULT_MAX_TOKENS
    tenants: Mapping[str, float] = field(default_factory=dict)
    pools: Mapping[str, str] = field(default_factory=dict)
    downstream_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Runs for one fleet; the columns are those of `sage_native.Workload`, beside the names behind their numbers.

    `work_class`: label per run. `num_unservable`: runs left out because no instance could ever hold them.
    """

    name: str
    span: float
    pools: tuple[str, ...]
    tenant: Labels
    work_class: Labels
    arrival: Floats
    tier: npt.NDArray[np.uint8]
    may_shed: npt.NDArray[np.uint8]
    budget: Floats
    stage_start: Indices
    pool: Indices
    prompt_tokens: Indices
    output_tokens: Indices
    max_tokens: Indices
    items: Indices
    ttft_slo: Floats
    tpot_slo: Floats
    e2e_slo: Floats
    downstream: Floats
    route: Ids
    block_start: Indices
    blocks: Ids
    block_tokens: int
    num_unservable: int

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def rate(self) -> float:
        """Runs submitted per second; NaN where a single run, or one moment, has no rate."""
        return len(self) / self.span if self.span > 0 and len(self) > 1 else nan

    @property
    def last_stage(self) -> npt.NDArray[np.int64]:
        """Index of each run's last stage, the one whose answer the caller sees."""
        return self.stage_start[1:].astype(np.int64) - 1

    def native(self) -> sage_native.Workload:
        """Return the columns as the native simulator takes them."""
        return sage_native.Workload(
            arrival=self.arrival,
            tenant=self.tenant.code,
            tier=self.tier,
            may_shed=self.may_shed,
            budget=self.budget,
            stage_start=self.stage_start,
            pool=self.pool,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            max_tokens=self.max_tokens,
            items=self.items,
            ttft_slo=self.ttft_slo,
            tpot_slo=self.tpot_slo,
            e2e_slo=self.e2e_slo,
            downstream=self.downstream,
            route=self.route,
            block_start=self.block_start,
            blocks=self.blocks,
        )


def shaped(trace: Trace, options: WorkloadOptions) -> Trace:
    """Return the part of the trace that `options` ask for, resampled, with its tenants and at its rate."""
    part = cut(trace, options.begin, options.end) if options.begin or options.end else trace
    if options.seed is not None:
        part = resampled(part, options.seed, options.resampling)
    if options.tenants:
        part = with_tenants(part, options.tenants, options.seed or 0)
    return part if options.rate is None else at_rate(part, options.rate)


def build_workload(trace: Trace, fleet: Fleet, options: WorkloadOptions | None = None) -> Workload:
    """Return the workload that `options` make of `trace` on `fleet`. The same arguments give the same workload.

    Raises ConfigurationError where the fleet has no instances for a pool of the trace, or no class is for a run.
    """
    options = options or WorkloadOptions()
    trace = shaped(trace, replace(options, rate=None))
    pools = _pool_numbers(trace, fleet, options.pools)
    trace, num_unservable = _servable(trace, fleet, pools)
    if options.rate is not None:
        trace = at_rate(trace, options.rate)
    _check_span(trace, fleet, options)
    stages, stage_start = trace.stages, trace.stage_start
    pool = pools[stages.pool]
    ends_in = pool[stage_start[1:] - 1]
    work_class = _classes_of_runs(fleet, ends_in, options)
    targets = _Targets(options.classes, work_class, stages.prompt_tokens[stage_start[1:] - 1])
    of_run = np.repeat(np.arange(len(trace)), np.diff(stage_start))
    is_last = np.zeros(len(stages), np.bool_)
    is_last[stage_start[1:] - 1] = True
    is_batched = np.array([fleet.is_batched(name) for name in fleet.pools])[pool]
    # The run's target is that of its last stage; earlier stages have it as their completion, with what follows
    # them given as `downstream`.
    goal = np.where(np.isinf(targets.ttft), targets.e2e, targets.ttft)[of_run]
    return Workload(
        name=trace.name,
        span=trace.span,
        pools=fleet.pools,
        tenant=trace.tenant,
        work_class=Labels(work_class, tuple(found.name for found in options.classes)),
        arrival=trace.arrival,
        tier=targets.tier,
        may_shed=targets.may_shed,
        budget=targets.budget,
        stage_start=stage_start.astype(np.uint32),
        pool=pool,
        prompt_tokens=stages.prompt_tokens,
        output_tokens=np.where(is_batched, 0, stages.output_tokens).astype(np.uint32),
        max_tokens=np.where(is_batched, 0, _claimed(stages.output_tokens, options.max_tokens)).astype(
            np.uint32
        ),
        items=stages.items,
        ttft_slo=np.where(is_last, targets.ttft[of_run], inf),
        tpot_slo=np.where(is_last, targets.tpot[of_run], inf),
        e2e_slo=np.where(is_last, targets.e2e[of_run], goal),
        downstream=_downstream(trace, fleet, pool, options.downstream_scale),
        route=_route_ids(trace.route)[of_run],
        block_start=stages.block_start.astype(np.uint32),
        blocks=stages.blocks,
        block_tokens=stages.block_tokens,
        num_unservable=num_unservable,
    )


def _check_span(trace: Trace, fleet: Fleet, options: WorkloadOptions) -> None:
    """Refuse what would be simulated for hours: telemetry is an event each, whether work arrives or not."""
    span = max(trace.span, float(trace.arrival[-1]))
    if not span <= _MAX_DAYS * _DAY:
        days = f"{span / _DAY:,.0f} days; expected at most {_MAX_DAYS}"
        if options.rate is not None:
            raise ConfigurationError(
                f"trace {trace.name} at rate {options.rate:g} lasts {days}: use a higher rate, or a part of the trace"
            )
        raise ConfigurationError(
            f"trace {trace.name} lasts {days}: look for a wrong time in it, use a part (--from, --until) or set a rate"
        )
    interval = fleet.network.telemetry_interval
    num_reports = len(fleet.instances) * span / interval if interval > 0 else 0.0
    if num_reports > _MAX_REPORTS:
        raise ConfigurationError(
            f"trace {trace.name} lasts {span / _DAY:.3g} days, in which fleet {fleet.name} reports {num_reports:.2g} "
            f"times; expected at most {_MAX_REPORTS:.0e}: use a longer [telemetry] interval, or a part of the trace"
        )


class _Targets:
    """What is promised to each run, as columns."""

    def __init__(self, classes: tuple[WorkClass, ...], work_class: Indices, prompt_tokens: Indices) -> None:
        def column(values: list[float]) -> Floats:
            return np.array(values, np.float64)[work_class]

        per_token = [1 / (found.slo.ttft_tokens_per_second or inf) for found in classes]
        self.ttft = column([_or_never(found.slo.ttft) for found in classes]) + prompt_tokens * column(
            per_token
        )
        self.tpot = column([_or_never(found.slo.tpot) for found in classes])
        self.e2e = column([_or_never(found.slo.e2e) for found in classes])
        self.budget = column([found.budget for found in classes])
        self.tier = np.array([found.slo.tier for found in classes], np.uint8)[work_class]
        self.may_shed = np.array([found.slo.may_shed for found in classes], np.uint8)[work_class]


def _pool_numbers(trace: Trace, fleet: Fleet, names: Mapping[str, str]) -> Indices:
    """Return the fleet's number of each pool of the trace."""
    for name in names:
        if name not in trace.stages.pools:
            raise ConfigurationError(
                f"trace {trace.name} has no pool {name!r}; expected one of {', '.join(trace.stages.pools)}"
            )
    found = []
    used = set(np.unique(trace.stages.pool).tolist())
    for number, pool in enumerate(trace.stages.pools):
        name = names.get(pool, pool)
        if number in used and name not in fleet.pools:
            raise ConfigurationError(
                f"fleet {fleet.name} has no pool {name!r}, which trace {trace.name} needs; "
                f"it has {', '.join(fleet.pools)}"
            )
        found.append(fleet.pools.index(name) if number in used else 0)
    return np.array(found, np.uint32)


def _servable(trace: Trace, fleet: Fleet, pools: Indices) -> tuple[Trace, int]:
    """Leave out runs with a stage that no instance of its pool could hold, whatever the policy does."""
    stages = trace.stages
    longest = np.array([fleet.longest_run(name) for name in fleet.pools])[pools[stages.pool]]
    total = stages.prompt_tokens.astype(np.int64) + stages.output_tokens
    fits = np.logical_and.reduceat(total <= longest, trace.stage_start[:-1])
    if fits.all():
        return trace, 0
    if not fits.any():
        raise ConfigurationError(f"no run of trace {trace.name} fits an instance of fleet {fleet.name}")
    return trace.take(np.flatnonzero(fits)), int((~fits).sum())


def _classes_of_runs(fleet: Fleet, ends_in: Indices, options: WorkloadOptions) -> Indices:
    """Draw a class for each run among those for the pool in which it ends, by their shares."""
    rng = np.random.default_rng((options.seed or 0, 0x510))
    names = {name for found in options.classes for name in [found.pool] if name}
    found = np.zeros(len(ends_in), np.uint32)
    wanted = {fleet_name: trace_name for trace_name, fleet_name in options.pools.items()}
    for number in np.unique(ends_in):
        pool = fleet.pools[int(number)]
        pool = pool if pool in names else wanted.get(pool, pool)
        eligible = [
            index
            for index, work in enumerate(options.classes)
            if work.pool == (pool if pool in names else "")
        ]
        shares = np.array([options.classes[index].share for index in eligible])
        if not len(shares) or shares.sum() <= 0:
            raise ConfigurationError(
                f"no class is for runs that end in pool {pool!r}; expected a class with that pool, or with none"
            )
        rows = np.flatnonzero(ends_in == number)
        found[rows] = rng.choice(np.array(eligible, np.uint32), len(rows), p=shares / shares.sum())
    return found


def _claimed(output_tokens: Indices, max_tokens: int) -> npt.NDArray[np.int64]:
    """What clients send as max_tokens: one generous cap; who gets more than that asks for the next power of two."""
    longer = 2 ** np.ceil(np.log2(np.maximum(output_tokens, 1))).astype(np.int64)
    return np.where(output_tokens <= max_tokens, max_tokens, longer)


def _downstream(trace: Trace, fleet: Fleet, pool: Indices, scale: float) -> Floats:
    """Seconds of work after each stage until the run's target: unloaded times of the stages that follow."""
    lengths = np.diff(trace.stage_start)
    if lengths.max() == 1:
        return np.zeros(len(pool))
    own = np.zeros(len(pool))
    for number in np.unique(pool):
        rows = pool == number
        name = fleet.pools[int(number)]
        own[rows] = scale * fleet.unloaded_seconds(
            name, trace.stages.prompt_tokens[rows], trace.stages.items[rows]
        )
    total = np.cumsum(own)
    last = np.repeat(trace.stage_start[1:] - 1, lengths)
    return total[last] - total


def _route_ids(route: Labels) -> Ids:
    return np.array([zlib.crc32(name.encode()) for name in route.names], np.uint64)[route.code]


def _or_never(seconds: float | None) -> float:
    return NEVER if seconds is None else seconds
