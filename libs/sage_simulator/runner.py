"""Running a workload on a fleet under a policy: one call in, one outcome out. Everything random has a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy.typing as npt

import sage_native
from sage_policy import Policy, native_of
from sage_simulator.fleet import Fleet
from sage_simulator.metrics import RunTimes, run_times
from sage_simulator.policies import PolicyChoice, policy_choice
from sage_simulator.report import Report, build_report
from sage_simulator.workload import Workload

__all__ = ["Outcome", "simulate"]

_NO_LIMIT = 2**64 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one simulation gave: the report, and the columns behind it for plots and further questions.

    `stages`: per-stage columns of the native result by name (submitted_at, dispatched_at, first_token_at, finished_at,
    instance, outcome, code, cached_tokens, num_attempts, …). `times`: per run.
    """

    report: Report
    times: RunTimes
    stages: Mapping[str, npt.NDArray[Any]]
    workload: Workload


def simulate(
    workload: Workload,
    fleet: Fleet,
    policy: str | PolicyChoice | Policy | sage_native.Policy,
    *,
    seed: int = 0,
    max_bad: int | None = None,
    until: float = inf,
    check: bool = False,
    time_decisions: bool = False,
) -> Outcome:
    """Run `workload` to its end (or `until`) and return what was measured.

    `policy`: a name (see `policy_choice`), a choice, or an object that is used up by this run. `seed`: of the policy's
    own chance and the engines' noise; the workload has its own. `max_bad`: stop once that many runs can no longer be
    good. `check`: verify that tokens, blocks and requests are conserved (slow). Raises ConfigurationError for an
    unknown policy and, with `check`, RuntimeError for what is not conserved and for commands that make no sense.
    """
    choice = policy_choice(policy) if isinstance(policy, str) else policy
    name = choice.name if isinstance(choice, PolicyChoice) else getattr(choice, "name", type(choice).__name__)
    made = choice.make(seed) if isinstance(choice, PolicyChoice) else choice
    native = made if isinstance(made, sage_native.Policy) else native_of(made)
    native.keep_receipts(False)
    result = sage_native.Simulation(
        native,
        _specs(fleet, workload.block_tokens),
        workload.native(),
        _options(fleet, seed, max_bad, until, check=check, time_decisions=time_decisions),
    ).run()
    stages: dict[str, npt.NDArray[Any]] = {column: getattr(result, column) for column in _STAGE_COLUMNS}
    times = run_times(workload, stages)
    report = build_report(workload, fleet, times, stages, result, policy=name, seed=seed)
    return Outcome(report, times, stages, workload)


def _specs(fleet: Fleet, block_tokens: int) -> list[sage_native.InstanceSpec]:
    pools = {name: number for number, name in enumerate(fleet.pools)}
    devices: dict[str, int] = {}
    return [
        sage_native.InstanceSpec(
            id=number,
            pool=pools[instance.pool],
            device=devices.setdefault(instance.device, len(devices)),
            is_batched=instance.is_batched,
            is_gpu=instance.is_gpu,
            max_in_flight=instance.max_in_flight,
            usd_per_hour=instance.usd_per_hour,
            prefix_block=block_tokens or 512,
            noise_sigma=instance.noise_sigma,
            interference=instance.interference,
            **{name: getattr(instance.profile, name) for name in _PROFILE_FIELDS},
        )
        for number, instance in enumerate(fleet.instances)
    ]


_STAGE_COLUMNS = (
    "submitted_at", "dispatched_at", "first_token_at", "finished_at", "instance", "outcome", "code", "cached_tokens",
    "num_attempts", "num_tokens", "predicted_ttft", "predicted_tpot", "retry_after",
)  # fmt: skip

_PROFILE_FIELDS = (
    "a0", "a1", "a2", "m0", "m1", "m2", "m3", "m4", "host", "max_sequences", "max_step_tokens", "max_context",
    "kv_tokens", "block_tokens", "watermark", "async_scheduling",
)  # fmt: skip


def _options(
    fleet: Fleet, seed: int, max_bad: int | None, until: float, *, check: bool, time_decisions: bool
) -> sage_native.SimulationOptions:
    network = fleet.network
    return sage_native.SimulationOptions(
        seed=seed,
        dispatch_latency=network.dispatch_latency,
        report_latency=network.report_latency,
        hop_latency=network.hop_latency,
        detection_latency=network.detection_latency,
        telemetry_interval=network.telemetry_interval,
        telemetry_latency=network.telemetry_latency,
        max_attempts=fleet.max_attempts,
        disturbances=[(item.at, item.instance, item.kind.value, item.factor) for item in fleet.disturbances],
        max_bad=_NO_LIMIT if max_bad is None else max_bad,
        until=until,
        check=check,
        time_decisions=time_decisions,
    )
