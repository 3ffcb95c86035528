"""Embedding: how batches are formed, and what embeddings and an LLM on shared devices do to each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from scenarios import SCENARIOS, TRACES, fleet_of, slice_of
from search import highest_step, rate_at, step_near

from sage_policy import SloClass
from sage_simulator.policies import policy_choice
from sage_simulator.resampling import Resampling
from sage_simulator.runner import simulate
from sage_simulator.shaping import Moment, at_rate, cut, mixed
from sage_simulator.slo_classes import WorkClass
from sage_simulator.traces import EMBED, LLM, Labels, Stages, Trace, read_trace
from sage_simulator.workload import Workload, WorkloadOptions, build_workload

__all__ = ["BATCHERS", "BatchPoint", "MixPoint", "batch_points", "equal_latency_rates", "mix_points"]

BATCHERS: Final = {
    "hybrid": "deadline batcher",
    "least-outstanding+window5": "fixed window of 5 ms",
    "least-outstanding+window10": "fixed window of 10 ms",
    "least-outstanding+hold": "eager, formed by the scheduler",
    "least-outstanding": "eager, formed by each worker",
}
"""Policy → how its batches come about."""

NUM_RUNS: Final = 10_000
PASSAGE_SHARE: Final = 0.2
TARGET: Final = 0.25
FLEET: Final = "embed-cpu-x2"


class BatchPoint(msgspec.Struct, frozen=True):
    """One policy at one rate, means over seeds. Seconds from the arrival to the vector."""

    policy: str
    rate: float
    p50: float
    p99: float
    question_p99: float
    passage_p99: float


def embedding_trace(num_runs: int, passage_share: float, seed: int) -> Trace:
    """Return questions and passages of RAGPulse in random order, Poisson arrivals, one a second on average."""
    rng = np.random.default_rng((seed, 11))
    questions, passages = _lengths()
    is_passage = rng.random(num_runs) < passage_share
    tokens = np.where(is_passage, rng.choice(passages, num_runs), rng.choice(questions, num_runs))
    arrival = np.cumsum(rng.exponential(1.0, num_runs))
    return Trace(
        name="ragpulse-embeddings",
        arrival=arrival,
        span=float(arrival[-1]),
        tenant=Labels.same("default", num_runs),
        route=Labels.same("embed", num_runs),
        session=np.arange(num_runs, dtype=np.int64),
        stage_start=np.arange(num_runs + 1, dtype=np.int64),
        stages=Stages(
            pool=np.zeros(num_runs, np.uint32),
            pools=(EMBED,),
            prompt_tokens=tokens.astype(np.uint32),
            output_tokens=np.zeros(num_runs, np.uint32),
            items=np.ones(num_runs, np.uint32),
            block_start=np.zeros(num_runs + 1, np.int64),
            blocks=np.empty(0, np.uint64),
        ),
    )


@cache
def _lengths() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    stages = read_trace(TRACES / "ragpulse" / "0_trace.jsonl.gz").stages
    questions = stages.prompt_tokens[stages.pool == stages.pools.index(EMBED)]
    passages = read_trace(TRACES / "ragpulse" / "2_passages.jsonl.gz").stages.prompt_tokens
    return questions, passages[passages > 0]


def _workload(rate: float, seed: int) -> Workload:
    classes = (WorkClass("embedding", slo=SloClass(e2e=TARGET)),)
    trace = at_rate(embedding_trace(NUM_RUNS, PASSAGE_SHARE, seed), rate)
    options = WorkloadOptions(seed=seed, resampling=Resampling.NONE, classes=classes)
    return build_workload(trace, fleet_of(FLEET), options)


def batch_points(rates: Sequence[float], seeds: Sequence[int]) -> list[BatchPoint]:
    """Return the latencies of every way to form batches at each rate. Nothing is refused: all is compared on all."""
    return [_batch_point(policy, rate, seeds) for rate in rates for policy in BATCHERS]


def _batch_point(policy: str, rate: float, seeds: Sequence[int]) -> BatchPoint:
    found = []
    for seed in seeds:
        workload = _workload(rate, seed)
        times = simulate(workload, fleet_of(FLEET), policy_choice(policy, shed=False), seed=seed).times
        is_passage = workload.prompt_tokens > _lengths()[0].max()
        found.append(
            [
                float(np.percentile(times.e2e, 50)),
                float(np.percentile(times.e2e, 99)),
                float(np.percentile(times.e2e[~is_passage], 99)),
                float(np.percentile(times.e2e[is_passage], 99)),
            ]
        )
    p50, p99, question, passage = np.mean(found, axis=0).tolist()
    return BatchPoint(policy, rate, p50, p99, question, passage)


def equal_latency_rates(limit: float, seeds: Sequence[int]) -> dict[str, float]:
    """Return for every way to form batches the highest rate at which the p99 of all requests is within `limit`."""

    def highest(policy: str) -> float:
        def keeps(step: int) -> bool:
            return _batch_point(policy, rate_at(step), seeds).p99 <= limit

        return rate_at(highest_step(keeps, step_near(150.0), step_near(10.0), step_near(2000.0), 8))

    return {policy: highest(policy) for policy in BATCHERS}


class MixPoint(msgspec.Struct, frozen=True):
    """LLM and embeddings on the same GPUs at one pair of rates: attainments alone and together, means over seeds."""

    policy: str
    llm_rate: float
    embedding_rate: float
    llm_alone: float
    llm_mixed: float
    embedding_alone: float
    embedding_mixed: float


MIX_FLEET: Final = "mix-rtx4090-x2-rtxpro6000-x2"
MIX_POLICIES: Final = (
    "hybrid",
    "hybrid-batcher",
    "lmetric",
    "dynamo-cost",
    "least-outstanding",
    "least-outstanding+hold",
)
MIX_CLASSES: Final = (
    WorkClass("chat", pool=LLM, slo=SloClass(ttft=1.0, ttft_tokens_per_second=4000.0, tpot=0.05)),
    WorkClass("embedding", pool=EMBED, slo=SloClass(e2e=TARGET)),
)


def mix_points(llm_rate: float, embedding_rate: float, seeds: Sequence[int]) -> list[MixPoint]:
    """Return what chat (Azure conv) and embeddings do to each other on shared GPUs, for the main policies."""
    return [_mix_point(policy, llm_rate, embedding_rate, seeds) for policy in MIX_POLICIES]


def _mix_point(policy: str, llm_rate: float, embedding_rate: float, seeds: Sequence[int]) -> MixPoint:
    found = []
    scenario = SCENARIOS["conv-mixed"]
    for seed in seeds:
        chat = at_rate(slice_of(scenario.trace, "test", seed, scenario.num_runs), llm_rate)
        embeddings = at_rate(
            cut(
                embedding_trace(int(embedding_rate * chat.span), PASSAGE_SHARE, seed), None, Moment(1.0, True)
            ),
            embedding_rate,
        )
        row = []
        for label, traces in (("chat", [chat]), ("embedding", [embeddings]), ("both", [chat, embeddings])):
            options = WorkloadOptions(
                seed=seed, resampling=Resampling.NONE, classes=MIX_CLASSES, max_tokens=32_768
            )
            workload = build_workload(mixed(traces), fleet_of(MIX_FLEET), options)
            classes = simulate(workload, fleet_of(MIX_FLEET), policy, seed=seed).report.classes
            row += [classes[name].attainment for name in ("chat", "embedding") if label in (name, "both")]
        found.append(row)
    alone, embedding_alone, together, embedding_together = np.mean(found, axis=0).tolist()
    return MixPoint(policy, llm_rate, embedding_rate, alone, together, embedding_alone, embedding_together)
