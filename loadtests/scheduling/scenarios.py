"""What is compared on what: traces, fleets, targets and slices of the scheduling experiments. No results here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np

from sage_policy import SloClass
from sage_simulator.fleet import Fleet
from sage_simulator.fleet_file import read_fleet
from sage_simulator.resampling import Resampling, jittered, resampled
from sage_simulator.shaping import Moment, cut, limited
from sage_simulator.slo_classes import WorkClass
from sage_simulator.traces import ServegenOptions, Trace, TraceOptions, read_trace
from sage_simulator.workload import Workload, WorkloadOptions, build_workload

__all__ = ["FLEETS", "SCENARIOS", "TRACES", "Half", "Scenario", "fleet_of", "workload_of"]

TRACES: Final = Path(__file__).parents[1] / "traces"
FLEETS: Final = Path(__file__).parent / "fleets"
HALF: Final = 0.5
TIGHT_SHARE: Final = 0.3
MAX_TOKENS: Final = 32_768
"""What every client claims as its limit: it says nothing of the true length."""
RELAXED_TTFT: Final = 5.0
RELAXED_TPOT: Final = 2.0
_MOONCAKE_BATCH: Final = 3.0
"""Seconds to which the published timestamps were rounded; arrivals are spread over them again."""
_SERVEGEN_DAY: Final = 86_400.0
_SERVEGEN_HOUR: Final = 3_600.0

Half = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One trace on one fleet.

    Targets: TTFT <= `ttft` + prompt tokens of the LLM / `ttft_tokens_per_second`, counted from the run's arrival, and
    TPOT <= `tpot`. `num_runs`: length of a slice. `guess`: runs per second at which the search for the capacity starts.
    """

    name: str
    trace: str
    fleet: str
    num_runs: int
    guess: float
    is_mixed: bool
    repeats_prefixes: bool = False
    has_tenants: bool = False
    ttft: float = 1.0
    ttft_tokens_per_second: float = 4000.0
    tpot: float = 0.05

    def classes(self, *, overload: bool) -> tuple[WorkClass, ...]:
        """Return one class, or for overload 30 % of it and 70 % with five times the TTFT and twice the TPOT."""
        tight = SloClass(ttft=self.ttft, ttft_tokens_per_second=self.ttft_tokens_per_second, tpot=self.tpot)
        if not overload:
            return (WorkClass("tight", slo=tight),)
        relaxed = SloClass(
            ttft=self.ttft * RELAXED_TTFT,
            ttft_tokens_per_second=self.ttft_tokens_per_second / RELAXED_TTFT,
            tpot=self.tpot * RELAXED_TPOT,
        )
        return (
            WorkClass("tight", TIGHT_SHARE, slo=tight),
            WorkClass("relaxed", 1 - TIGHT_SHARE, slo=relaxed),
        )


_CONV: Final = "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz"
_CODE: Final = "azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz"
_MOONCAKE: Final = "mooncake_fast25/conversation_trace.jsonl.gz"
_RAGPULSE: Final = "ragpulse/0_trace.jsonl.gz"
_SERVEGEN: Final = "servegen/deepseek-r1.arrivals.csv.gz"
_SAME: Final = "rtx4090-x4"
_MIXED: Final = "rtx4090-x2-rtxpro6000-x2"

SCENARIOS: Final[dict[str, Scenario]] = {
    found.name: found
    for found in (
        Scenario("conv-same", _CONV, _SAME, 4000, 10.0, is_mixed=False),
        Scenario("conv-mixed", _CONV, _MIXED, 4000, 18.0, is_mixed=True),
        Scenario("code-same", _CODE, _SAME, 4000, 1.0, is_mixed=False),
        Scenario("code-mixed", _CODE, _MIXED, 4000, 2.0, is_mixed=True),
        Scenario(
            "mooncake-same", _MOONCAKE, "rtxpro6000-x4", 3000, 1.0, is_mixed=False, repeats_prefixes=True
        ),
        Scenario(
            "mooncake-mixed", _MOONCAKE, "rtx4090-x2-rtxpro6000-x4", 3000, 1.2,
            is_mixed=True, repeats_prefixes=True,
        ),
        Scenario(
            "rag-same", _RAGPULSE, "rag-rtx4090-x4", 3000, 2.0, is_mixed=False, repeats_prefixes=True, ttft=1.5
        ),
        Scenario(
            "rag-mixed", _RAGPULSE, "rag-rtx4090-x2-rtxpro6000-x2", 3000, 4.0,
            is_mixed=True, repeats_prefixes=True, ttft=1.5,
        ),
        Scenario("servegen-same", _SERVEGEN, "rtxpro6000-x4", 3000, 2.5, is_mixed=False, has_tenants=True),
        Scenario("servegen-mixed", _SERVEGEN, _MIXED, 3000, 1.5, is_mixed=True, has_tenants=True),
    )
}  # fmt: skip


@cache
def fleet_of(name: str) -> Fleet:
    """Read a fleet of this folder."""
    return read_fleet(FLEETS / f"{name}.toml")


@cache
def _whole_trace(file: str) -> Trace:
    return read_trace(TRACES / file)


@lru_cache(maxsize=16)
def slice_of(file: str, half: Half, seed: int, num_runs: int) -> Trace:
    """Return the runs that a seed stands for, of one half of a trace by time, at the trace's own rate."""
    if file == _SERVEGEN:
        return limited(_servegen(file, half, seed), num_runs)
    begin, end = (None, Moment(HALF, True)) if half == "train" else (Moment(HALF, True), None)
    part = cut(_whole_trace(file), begin, end)
    drawn = resampled(part, seed)
    # Another place in the half for every seed; the rest of a seed is its resampling.
    surplus = len(drawn) - num_runs
    if surplus > 0 and part.has_prefixes:
        first = int(np.random.default_rng((seed, 7)).integers(surplus + 1))
        begin_at = float(drawn.arrival[first])
        drawn = replace(
            drawn.take(np.arange(first, len(drawn))),
            arrival=drawn.arrival[first:] - begin_at,
            span=drawn.span - begin_at,
        )
    if file == _MOONCAKE:
        drawn = jittered(drawn, _MOONCAKE_BATCH, np.random.default_rng((seed, 8)))
    return limited(drawn, num_runs)


def _servegen(file: str, half: Half, seed: int) -> Trace:
    """Generate a quarter of an hour of its day: any in the first half to train, any in the second to test."""
    day_half = _SERVEGEN_DAY * HALF
    rng = np.random.default_rng((seed, half == "test"))
    begin = (
        float(rng.integers(int(day_half / _SERVEGEN_HOUR) - 1)) * _SERVEGEN_HOUR + (half == "test") * day_half
    )
    options = ServegenOptions(begin=begin, duration=900.0, seed=seed)
    return read_trace(TRACES / file, TraceOptions(servegen=options))


@lru_cache(maxsize=16)
def _natural_workload(scenario: Scenario, half: Half, seed: int, overload: bool) -> Workload:
    trace = slice_of(scenario.trace, half, seed, scenario.num_runs)
    options = WorkloadOptions(
        seed=seed,
        resampling=Resampling.NONE,
        classes=scenario.classes(overload=overload),
        max_tokens=MAX_TOKENS,
    )
    return build_workload(trace, fleet_of(scenario.fleet), options)


def workload_of(
    scenario: Scenario, half: Half, seed: int, rate: float, *, overload: bool = False
) -> Workload:
    """Return the seed's slice in the time in which its mean rate is `rate` runs per second."""
    found = _natural_workload(scenario, half, seed, overload)
    factor = rate / found.rate
    return replace(found, arrival=found.arrival / factor, span=found.span / factor)
