"""Types of the compiled module. Functions release the GIL; ValueError says what was found and what was expected."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def top_k(
    matrix: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    k: int,
    mask: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return (indices, scores) of the rows of `matrix` with the largest inner products, exactly.

    `matrix`: shape (num_rows, dim); `queries`: shape (num_queries, dim); both C-contiguous. The results have
    shape (num_queries, min(k, num_allowed)), best first, ties by lower index; a row whose score is NaN ranks last
    with score -inf. `mask`: shape (num_rows,), False = skipped. Scores have the same bits on every host.
    """

def maximal_marginal_relevance(
    candidates: npt.NDArray[np.float32],
    relevance: npt.NDArray[np.float32],
    k: int,
    trade_off: float = 0.5,
) -> npt.NDArray[np.int64]:
    """Choose candidates that are relevant and unlike each other; return min(k, num_rows) indices in order.

    `candidates`: shape (num_rows, dim), L2-normalised; `relevance`: shape (num_rows,), on the same scale as a
    cosine. `trade_off` 1 is plain relevance, 0 plain diversity. Carbonell and Goldstein, SIGIR 1998.
    """

def reciprocal_rank_fusion(
    rankings: Sequence[npt.NDArray[np.int64]],
    k: int,
    rank_constant: float = 60.0,
    weights: Sequence[float] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Fuse rankings of ids, each best first; return the (ids, scores) of the best `k`, ties by lower id.

    The score of an id is the sum of weight / (rank_constant + rank), rank counted from 1, over the rankings that
    hold it. Cormack, Clarke and Buettcher, SIGIR 2009.
    """

def split_text(text: str, chunk_chars: int, overlap_chars: int = 0) -> list[tuple[int, int]]:
    """Cut `text` into passages; return their half-open ranges of code points, so `text[start:end]` is a passage.

    Passages have at most `chunk_chars` characters and no white space at their ends, hold every character that is
    not white space, and share at most `overlap_chars` (at most half of `chunk_chars`) with their neighbours. They
    end at paragraphs, else lines, sentences, words; only a longer run without any of them is cut inside.
    """

class Policy:
    """A native scheduling policy, one call per event; `libs/sage_policy/policy.py` gives events and commands names.

    Times are seconds; requests, pools, instances, tenants and devices are numbers. Each call returns commands as
    tuples (kind, request, instance, pool, batch, code, retry_after, at, num_instances, decision).
    """

    def keep_receipts(self, keep: bool) -> None:
        """Whether decisions carry reasons and candidates; True unless told."""
    def submitted(
        self, now: float, request: int, pool: int, tenant: int, tier: int, may_shed: bool, priority: int,
        started_at: float, deadline: float, ttft_slo: float, tpot_slo: float, e2e_slo: float, downstream: float,
        num_prompt_tokens: int, max_tokens: int, num_items: int, route: int, blocks: Sequence[int],
    ) -> list[tuple[Any, ...]]: ...  # fmt: skip
    def started(self, now: float, request: int) -> list[tuple[Any, ...]]: ...
    def first_token(self, now: float, request: int, num_cached: int) -> list[tuple[Any, ...]]: ...
    def progressed(self, now: float, request: int, num_tokens: int) -> list[tuple[Any, ...]]: ...
    def finished(self, now: float, request: int, num_tokens: int) -> list[tuple[Any, ...]]: ...
    def cancelled(self, now: float, request: int) -> list[tuple[Any, ...]]: ...
    def instance_up(
        self, now: float, instance: int, pool: int, device: int, is_batched: bool, is_gpu: bool, max_in_flight: int,
        usd_per_hour: float, prefix_block: int, limits: tuple[int, int, int, int, int, float], cost: Sequence[float],
        running: Sequence[int],
    ) -> list[tuple[Any, ...]]: ...  # fmt: skip
    def instance_down(self, now: float, instance: int, pool: int, is_lost: bool) -> list[tuple[Any, ...]]: ...
    def telemetry(
        self, now: float, instance: int, pool: int, num_running: int, num_waiting: int, kv_used: float
    ) -> list[tuple[Any, ...]]: ...
    def pool_closed(self, now: float, pool: int) -> list[tuple[Any, ...]]: ...
    def timer(self, now: float) -> list[tuple[Any, ...]]: ...

class ConfiguredPolicy(Policy):
    """The hybrid policy and every baseline: one choice per layer."""

    def __init__(self, **options: Any) -> None:
        """`options`: the fields of native/include/sage/policy/config.hpp. Raises TypeError for others."""
    def num_queued(self, pool: int) -> int:
        """Return how many requests of the pool wait."""
    def knows(self, request: int) -> bool:
        """Return True from a request's first event to the command or report that ends it."""

class FairQueue:
    """One pool's queue, for its tests; see native/include/sage/policy/fair_queue.hpp."""

    def __init__(self, *, fair: bool, quantum: float, lower_tier_share: float) -> None: ...
    def push(
        self, request: int, tenant: int, tier: int, priority: int, key: float, service: float
    ) -> None: ...
    def remove(self, request: int) -> bool: ...
    def serve(self, request: int) -> None: ...
    def charge(self, tenant: int, tier: int, service: float) -> None: ...
    def first(self, count: int) -> list[int]: ...
    def __len__(self) -> int: ...
    def __contains__(self, request: int) -> bool: ...

class InstanceState:
    """What a policy reckons of one instance, for its tests; see native/include/sage/policy/instance_state.hpp."""

    capacity: float
    pending: float
    pending_work: float
    decoding: float
    resident: float
    reserved: float
    prefill_load: float

    def __init__(
        self,
        cost: Sequence[float],
        *,
        max_step_tokens: int = 2048,
        kv_tokens: int = 1_000_000,
        now: float = 0.0,
    ) -> None:
        """`cost`: a0 a1 a2 m0 m1 m2 m3 m4 host."""
    def add(
        self,
        request: int,
        *,
        prompt: int,
        uncached: int,
        expected_tokens: float,
        reserved_tokens: float,
        tpot_slo: float = ...,
        now: float,
    ) -> None: ...
    def first_token(self, request: int, now: float) -> None: ...
    def remove(self, request: int, now: float) -> bool: ...
    def refresh(self, now: float) -> None: ...
    def predict(self, prompt: float, cached: float, expected_tokens: float) -> list[float]:
        """Return seconds: TTFT, TPOT, and the part of TTFT that is waiting for memory."""
    def peak_memory(self, prompt: float, reserved_tokens: float) -> float: ...
    def harmed_by(self, stall: float, future_load: float, now: float) -> float: ...

class PythonPolicy(Policy):
    """A policy written in Python: `target` answers the calls of `Policy`."""

    def __init__(self, target: object) -> None: ...

# The parts that policies are made of, for their tests and benchmarks; described in native/include/sage/policy/*.hpp.
# Step costs are the nine values a0 a1 a2 m0 m1 m2 m3 m4 host. ValueError: an option is out of its range.

class PrefixIndex:
    """Which instances hold which leading blocks of a prompt: chained block hashes, least recently used leave first."""

    def __init__(self, max_blocks_per_instance: int = 4096) -> None: ...
    def add_instance(self, instance: int, max_blocks: int = 0) -> int: ...
    def remove_instance(self, instance: int) -> None: ...
    def insert(self, instance: int, blocks: Sequence[int] | npt.NDArray[np.uint64]) -> None: ...
    def matched(self, instance: int, blocks: Sequence[int] | npt.NDArray[np.uint64]) -> int: ...
    def match_all(self, blocks: Sequence[int] | npt.NDArray[np.uint64]) -> list[int]:
        """Return the number of leading blocks held, by slot."""

    def slot(self, instance: int) -> int:
        """Return the instance's index in match_all, 2**32 - 1 where it is unknown."""

    def num_blocks(self, instance: int) -> int: ...
    @property
    def num_distinct(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...

class LengthHistogram:
    """Decayed histograms of output lengths by (tenant, route, pool), backed by (tenant, pool), (pool), a prior."""

    def __init__(
        self,
        *,
        decay: float = 0.995,
        parent_weight: float = 16.0,
        prior_median: float = 200.0,
        prior_shape: float = 2.0,
        max_keys: int = 4096,
    ) -> None: ...
    def record(self, tenant: int, route: int, pool: int, num_tokens: int) -> None: ...
    def quantile(
        self, tenant: int, route: int, pool: int, q: float, max_tokens: int = 0, so_far: int = 0
    ) -> float: ...
    def mean(self, tenant: int, route: int, pool: int, max_tokens: int = 0, so_far: int = 0) -> float: ...
    @property
    def num_keys(self) -> int: ...
    @staticmethod
    def edges() -> list[float]: ...

class BoundedLeastSquares:
    """Exponentially weighted least squares of up to 5 coefficients with a prior of 1, within bounds."""

    def __init__(
        self,
        num_coefficients: int,
        *,
        forgetting: float = 0.995,
        prior_weight: float = 1.0,
        lowest: float = 0.3,
        highest: float = 3.0,
    ) -> None: ...
    def observe(self, inputs: Sequence[float], output: float) -> None:
        """Take one row; `inputs` has 5 values, those beyond num_coefficients are ignored."""

    def solve(self) -> list[float]: ...

class OnlineCost:
    """The step cost of one instance, learned from step times or from request times."""

    def __init__(
        self,
        prior: Sequence[float],
        *,
        forgetting: float = 0.995,
        lowest: float = 0.3,
        highest: float = 3.0,
        prior_weight: float = 1.0,
    ) -> None: ...
    def observe_decode(self, decoding: float, resident: float, seconds: float) -> None: ...
    def observe_mixed(
        self, prefill: float, decoding: float, resident: float, work: float, seconds: float
    ) -> None: ...
    def observe_batch(self, tokens: float, items: float, seconds: float) -> None: ...
    def observe_scale(self, is_decode: bool, predicted: float, actual: float) -> None: ...
    @property
    def cost(self) -> list[float]: ...
    def num_observed(self, is_decode: bool) -> int: ...

class SpeedFactor:
    """Decayed geometric mean of actual / predicted, robust to stalls, quick after lasting changes."""

    def __init__(
        self,
        *,
        forgetting: float = 0.995,
        quick_forgetting: float = 0.9,
        lowest: float = 0.3,
        highest: float = 3.0,
        prior_weight: float = 4.0,
    ) -> None: ...
    def observe(self, predicted: float, actual: float) -> None: ...
    @property
    def value(self) -> float: ...
    @property
    def num_observed(self) -> int: ...

class QuantileFactor:
    """A factor on predictions such that the share `q` of actual values stays below."""

    def __init__(
        self,
        *,
        q: float = 0.9,
        step: float = 0.02,
        lowest: float = 0.5,
        highest: float = 3.0,
        coverage_decay: float = 0.99,
    ) -> None: ...
    def observe(self, predicted: float, actual: float) -> None: ...
    @property
    def value(self) -> float: ...
    @property
    def coverage(self) -> float: ...
    @property
    def num_observed(self) -> int: ...

def batch_throughput(cost: Sequence[float], tokens: float, tokens_per_item: float) -> float:
    """Return the tokens per second of a batch executor at that batch size."""

def knee_tokens(
    cost: Sequence[float], tokens_per_item: float, max_tokens: float, min_gain: float = 0.05
) -> float:
    """Return the smallest batch, in padded tokens, that gains less than `min_gain` of throughput when doubled."""

class EngineModel:
    """Continuous batching without a model: which requests advance in a step, and how long it takes.

    Follows vLLM V1: running requests first, chunked prompts, admission only if the whole prompt fits the free blocks,
    recompute preemption of the newest, cached prefixes. With `async_scheduling` the step after the one that runs is
    planned already, as vLLM does: what arrives during a step is computed in the step after the next.
    """

    def __init__(
        self, *, a0: float = 0.0, a1: float = 0.0, a2: float = 0.0, m0: float = 0.0, m1: float = 0.0,
        m2: float = 0.0, m3: float = 0.0, m4: float = 0.0, host: float = 0.0, max_sequences: int = 256,
        max_step_tokens: int = 2048, max_context: int = 32768, kv_tokens: int = 1_000_000, block_tokens: int = 16,
        watermark: float = 0.0, async_scheduling: bool = True,
    ) -> None:  # fmt: skip
        """See `sage_policy.policy.EngineProfile`. Raises ValueError for limits that no engine can have."""
    def submit(
        self, request: int, num_prompt: int, num_generated: int = 0, priority: int = 0,
        blocks: Sequence[int] = (), prefix_block: int = 512, num_output: int = 0,
    ) -> None:  # fmt: skip
        """Queue a request, higher priority first. `num_generated` tokens of earlier attempts are computed again.

        `blocks`: chained hashes of the prompt's leading blocks of `prefix_block` tokens. `num_output`: tokens, those
        of earlier attempts included, after which the request leaves by itself; 0: when it is removed. Raises
        ValueError for a number that is taken and for a request that could never run.
        """
    def remove(self, request: int) -> None:
        """Free a request in any phase. Unknown ones are ignored."""
    def step(self) -> tuple[float, list[int]]:
        """Begin the next step: return its seconds, and the requests that have one more token once they passed.

        Raises RuntimeError where a request without `num_output` outgrew the cache.
        """
    def num_cached(self, request: int) -> int:
        """Return the prompt tokens that were not computed when the request was admitted. KeyError: not here."""
    def check(self) -> None:
        """Count blocks, tokens and requests afresh. Raises RuntimeError that says what is off."""
    @property
    def is_idle(self) -> bool:
        """True while there is nothing to step."""
    @property
    def num_running(self) -> int:
        """Requests in the batch."""
    @property
    def num_waiting(self) -> int:
        """Requests outside it."""
    @property
    def num_resident(self) -> int:
        """Tokens of the running requests in the KV cache."""
    @property
    def num_preemptions(self) -> int:
        """Times that a request was thrown out to be computed again."""
    @property
    def kv_used(self) -> float:
        """Share of the KV cache's blocks that requests hold, 0..1."""
    @property
    def max_sequence_tokens(self) -> int:
        """Longest prompt plus output: the context, or all blocks but the one that vLLM keeps back."""

class InstanceSpec:
    """One worker of a simulated fleet. Its place in the fleet is its `id`."""

    def __init__(
        self, *, id: int, pool: int, device: int = 0, is_batched: bool = False, is_gpu: bool = True,
        max_in_flight: int = 256, usd_per_hour: float = 0.0, prefix_block: int = 512, noise_sigma: float = 0.0,
        interference: float = 1.0, a0: float = 0.0, a1: float = 0.0, a2: float = 0.0, m0: float = 0.0,
        m1: float = 0.0, m2: float = 0.0, m3: float = 0.0, m4: float = 0.0, host: float = 0.0,
        max_sequences: int = 256, max_step_tokens: int = 2048, max_context: int = 32768, kv_tokens: int = 1_000_000,
        block_tokens: int = 16, watermark: float = 0.0, async_scheduling: bool = True,
    ) -> None:  # fmt: skip
        """`noise_sigma`: of log-normal noise of mean 1 on each step. `interference`: factor on a step that begins
        while another instance of the same `device` is busy. An executor of batches takes `max_sequences` items and
        `max_step_tokens` padded tokens (longest item times items) at once.
        """
    @property
    def id(self) -> int: ...
    @property
    def pool(self) -> int: ...
    @property
    def device(self) -> int: ...

class Workload:
    """Runs, each a request or a chain of them: numpy columns, kept and not copied.

    Per run: when it arrives (ascending seconds), who sent it, how long its caller waits (`budget`, from the arrival),
    and where its stages begin (`stage_start`, num_runs + 1 offsets). Per stage: pool, lengths, items, targets in
    seconds from the run's arrival (TPOT: per token; inf: none), what the policy is told to follow (`downstream`),
    `route`, and hashes of the prompt's blocks (`block_start`, num_stages + 1 offsets). `prompt_tokens` are those of
    all items together; `output_tokens` is the truth, which no policy is told. `may_shed` is 0 or 1.
    """

    def __init__(
        self,
        *,
        arrival: npt.NDArray[np.float64],
        tenant: npt.NDArray[np.uint32],
        tier: npt.NDArray[np.uint8],
        may_shed: npt.NDArray[np.uint8],
        budget: npt.NDArray[np.float64],
        stage_start: npt.NDArray[np.uint32],
        pool: npt.NDArray[np.uint32],
        prompt_tokens: npt.NDArray[np.uint32],
        output_tokens: npt.NDArray[np.uint32],
        max_tokens: npt.NDArray[np.uint32],
        items: npt.NDArray[np.uint32],
        ttft_slo: npt.NDArray[np.float64],
        tpot_slo: npt.NDArray[np.float64],
        e2e_slo: npt.NDArray[np.float64],
        downstream: npt.NDArray[np.float64],
        route: npt.NDArray[np.uint64],
        block_start: npt.NDArray[np.uint32],
        blocks: npt.NDArray[np.uint64],
    ) -> None:
        """Raises ValueError naming the column whose type, size or values do not fit."""
    @property
    def num_runs(self) -> int: ...
    @property
    def num_stages(self) -> int: ...

class SimulationOptions:
    """Latencies, telemetry, failures and limits of one simulation. Times are seconds."""

    def __init__(
        self,
        *,
        seed: int = 0,
        dispatch_latency: float = 0.0,
        report_latency: float = 0.0,
        hop_latency: float = 0.0,
        detection_latency: float = 0.0,
        telemetry_interval: float = 0.0,
        telemetry_latency: float = 0.0,
        max_attempts: int = 3,
        disturbances: Sequence[tuple[float, int, str, float]] = (),
        max_bad: int = ...,
        until: float = ...,
        check: bool = False,
        send_started: bool = False,
        time_decisions: bool = False,
    ) -> None:
        """`dispatch_latency`: policy to engine; `report_latency`: engine to policy and caller; `hop_latency`: end of a
        stage to the submit of the next; `detection_latency`: death of an instance to its report.

        `telemetry_interval` 0: none. `disturbances`: (at, instance, kind, factor) with kind down (dies with its work,
        which is submitted again up to `max_attempts` dispatches), drain, up, slow (steps take `factor` as long),
        normal. `max_bad`: stop once that many runs have missed a target. `check`: raise where requests, tokens or
        blocks are not conserved, or a command makes no sense. `time_decisions`: measure the policy's calls.
        """

class SimulationResult:
    """Columns per stage and per instance. Times are the caller's, `report_latency` included; NaN: it never happened."""

    submitted_at: npt.NDArray[np.float64]
    dispatched_at: npt.NDArray[np.float64]
    """Of the last attempt, as are `instance` (2**32 - 1: none) and the predictions (seconds from the dispatch)."""
    first_token_at: npt.NDArray[np.float64]
    """Of the first attempt; for batch work the completion."""
    finished_at: npt.NDArray[np.float64]
    instance: npt.NDArray[np.uint32]
    outcome: npt.NDArray[np.uint8]
    """0 finished, 1 shed, 2 failed, 3 unfinished; the stages after one that was shed or failed stay unfinished."""
    code: npt.NDArray[np.uint8]
    """Why it was shed: 0 overloaded, 1 deadline_exceeded, 2 worker_lost, 3 cancelled."""
    cached_tokens: npt.NDArray[np.uint32]
    num_attempts: npt.NDArray[np.uint32]
    num_tokens: npt.NDArray[np.uint32]
    """Output tokens that the caller got."""
    predicted_ttft: npt.NDArray[np.float64]
    predicted_tpot: npt.NDArray[np.float64]
    retry_after: npt.NDArray[np.float64]
    instance_busy_seconds: npt.NDArray[np.float64]
    instance_num_steps: npt.NDArray[np.uint64]
    instance_num_preemptions: npt.NDArray[np.uint64]
    instance_num_generated: npt.NDArray[np.uint64]
    instance_cached_tokens: npt.NDArray[np.uint64]
    instance_num_finished: npt.NDArray[np.uint64]
    instance_num_lost: npt.NDArray[np.uint64]
    histogram_edges: npt.NDArray[np.float64]
    """Bin i of both histograms holds edges[i] <= seconds < edges[i + 1]; 32 bins per octave."""
    itl_counts: npt.NDArray[np.uint64]
    """Inter-token latencies of all requests pooled."""
    decision_counts: npt.NDArray[np.uint64]
    """Wall time of the policy's calls, with `time_decisions`."""
    num_events: int
    num_bad: int
    """Runs known to have missed a target when the simulation ended."""
    ended_at: float
    wall_seconds: float
    cpu_seconds: float
    """Of the thread that ran it: what the simulation costs where other processes share the cores."""
    stopped_early: bool

class Simulation:
    """A fleet under one scheduling policy, in simulated time. The same scenario and seed give the same result."""

    def __init__(
        self,
        policy: Policy,
        instances: Sequence[InstanceSpec],
        workload: Workload,
        options: SimulationOptions = ...,
    ) -> None:
        """Raises ValueError for a scenario that cannot be."""
    def run(self) -> SimulationResult:
        """Run to the end, once; the policy has learned by then. Releases the GIL, and can be interrupted.

        Raises RuntimeError for a second run, and with `SimulationOptions.check` for what is listed there.
        """
