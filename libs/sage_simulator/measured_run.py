"""A run that was measured on a real engine, the same run on the engine model, and the host's share found from both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

import sage_native
from sage_policy import EngineProfile
from sage_simulator.layer_times import find_file
from sage_simulator.mistakes import FileMistake
from sage_simulator.text_files import Limits
from sage_simulator.traces.jsonl_rows import read_rows
from sage_simulator.traces.trace import LLM, Floats, Indices, Labels, Stages, Trace
from sage_simulator.values import Rule, number, whole_number

__all__ = ["Latencies", "MeasuredRun", "calibrated_host", "read_measured_run", "replayed"]

_MAX_HOST: Final = 0.010
_RESOLUTION: Final = 1e-5


class _Row(msgspec.Struct):
    input_toks: int
    output_toks: int
    arrival_time: float
    queued_ts: float
    first_token_ts: float
    last_token_ts: float


_RULES: Final[dict[str, Rule[Any]]] = {
    "input_toks": whole_number(1, 10_000_000),
    "output_toks": whole_number(1, 10_000_000),
    "arrival_time": number(0.0, 1e12),
    "queued_ts": number(0.0, 1e12),
    "first_token_ts": number(0.0, 1e12),
    "last_token_ts": number(0.0, 1e12),
}


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Seconds per request: TTFT and E2E from its arrival, TPOT = (E2E - TTFT) / (output tokens - 1) or NaN."""

    ttft: Floats
    tpot: Floats
    e2e: Floats


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """What was sent when, and when tokens came. Times are seconds since the first arrival; requests by arrival."""

    name: str
    arrival: Floats
    prompt_tokens: Indices
    output_tokens: Indices
    first_token: Floats
    last_token: Floats

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def latencies(self) -> Latencies:
        """What its callers got."""
        return _latencies(self, self.first_token, self.last_token)

    def trace(self) -> Trace:
        """Return what was sent, for `build_workload`. Which prompts share prefixes is not known."""
        count = len(self)
        stages = Stages(
            pool=np.zeros(count, np.uint32),
            pools=(LLM,),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            items=np.ones(count, np.uint32),
            block_start=np.zeros(count + 1, np.int64),
            blocks=np.zeros(0, np.uint64),
        )
        return Trace(
            name=self.name,
            arrival=self.arrival,
            span=float(self.arrival[-1]),
            tenant=Labels.same("all", count),
            route=Labels.same("all", count),
            session=np.arange(count),
            stage_start=np.arange(count + 1),
            stages=stages,
        )


def read_measured_run(folder: Path, hardware: str) -> MeasuredRun:
    """Read the `…requests.jsonl` of `hardware`, as LLMServingSim's `bench run` writes it. Raises FileMistake.

    Arrivals are wall-clock times, the others the engine's own clock: the shortest way from an arrival into the
    engine's queue is taken for no time at all.
    """
    file = find_file(folder, hardware, "requests.jsonl")
    rows = [row for _, row in read_rows(file, _Row, _RULES, Limits())]
    if not rows:
        raise FileMistake(file, 0, "the file is empty; expected one request per line")
    rows.sort(key=lambda row: row.arrival_time)
    begin = rows[0].arrival_time
    clock = min(row.queued_ts - row.arrival_time for row in rows) + begin
    return MeasuredRun(
        name=hardware,
        arrival=np.array([row.arrival_time - begin for row in rows]),
        prompt_tokens=np.array([row.input_toks for row in rows], np.uint32),
        output_tokens=np.array([row.output_toks for row in rows], np.uint32),
        first_token=np.array([row.first_token_ts - clock for row in rows]),
        last_token=np.array([row.last_token_ts - clock for row in rows]),
    )


def replayed(profile: EngineProfile, run: MeasuredRun) -> Latencies:
    """Return what callers of `run` would have got from the engine model with `profile`, and nothing in between."""
    engine = sage_native.EngineModel(
        **{name: getattr(profile, name) for name in profile.__struct_fields__ if name != "description"}
    )
    prompts, outputs = run.prompt_tokens.tolist(), run.output_tokens.tolist()
    first, last = np.full(len(run), np.nan), np.full(len(run), np.nan)
    num_delivered = [0] * len(run)
    now, sent = 0.0, 0
    while sent < len(run) or not engine.is_idle:
        if engine.is_idle:
            now = max(now, float(run.arrival[sent]))
        while sent < len(run) and run.arrival[sent] <= now:
            engine.submit(sent, prompts[sent], num_output=outputs[sent])
            sent += 1
        seconds, emitting = engine.step()
        now += seconds
        for request in emitting:
            num_delivered[request] += 1
            if num_delivered[request] == 1:
                first[request] = now
            if num_delivered[request] == outputs[request]:
                last[request] = now
    return _latencies(run, first, last)


def calibrated_host(profile: EngineProfile, run: MeasuredRun) -> float:
    """Return the `host` seconds per step with which the model's mean TPOT is the measured one; 0 where it is above.

    A constant per step acts on TPOT alike under any load, while TTFT under overload sums up a whole queue's errors.
    """

    def excess(host: float) -> float:
        found = replayed(msgspec.structs.replace(profile, host=host), run)
        return float(np.nanmean(found.tpot)) - measured

    measured = float(np.nanmean(run.latencies.tpot))
    low, high = 0.0, _MAX_HOST
    if excess(low) >= 0:
        return 0.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return round(high, 5)


def _latencies(run: MeasuredRun, first: Floats, last: Floats) -> Latencies:
    gaps = run.output_tokens.astype(np.float64) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(gaps > 0, (last - first) / gaps, np.nan)
    return Latencies(first - run.arrival, tpot, last - run.arrival)
