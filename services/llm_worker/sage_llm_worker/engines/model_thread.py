"""The thread that owns a Hugging Face model: loads it, batches requests, turns tokens into text. Needs torch.

Commands come in through a queue; what a step produced leaves with one call into the event loop.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sage_core import ConfigurationError, EngineError, Internal, SageError
from sage_llm_worker.engines.rolling_batch import RollingBatch, Sequence, kv_bytes_per_token
from sage_llm_worker.engines.sampling import Sampler, SamplingDefaults
from sage_llm_worker.limits import output_limit
from sage_llm_worker.prompts import prompt_ids, resumed_ids
from sage_llm_worker.streams import EventStream
from sage_llm_worker.text import Detokenizer, TextAssembler, decoder_of
from sage_telemetry import get_logger
from sage_wire.messages import Completed, Generate, Timings, Tokens, Usage
from sage_worker.device import device_name
from sage_worker.engine import Capacity, EngineStats

__all__ = ["LoadOptions", "ModelThread"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. `dtype` is auto, float32, bfloat16 or float16; None means the default."""

    path: Path
    dtype: str = "auto"
    threads: int | None = None
    max_sequences: int = 16
    max_context: int | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """A request on its way to the thread."""

    request_id: str
    request: Generate
    priority: int
    stream: EventStream
    submitted: float


@dataclass(slots=True)
class _Running:
    submission: Submission
    sequence: Sequence
    detokenizer: Detokenizer
    assembler: TextAssembler
    num_prompt: int
    limit: int
    first_token: float = 0.0


@dataclass(frozen=True, slots=True)
class _Delivery:
    stream: EventStream
    event: Tokens | Completed | SageError


class ModelThread:
    """Start with `start`, which returns once the model is loaded; all other methods are safe from the event loop."""

    def __init__(self, options: LoadOptions, loop: asyncio.AbstractEventLoop) -> None:
        self._options = options
        self._loop = loop
        self._log = get_logger()
        self._commands: queue.SimpleQueue[Submission | str | None] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._outbox: list[_Delivery] = []
        self._thread: threading.Thread | None = None
        self._loaded: asyncio.Future[None] = loop.create_future()
        self.capacity = Capacity(max_sequences=options.max_sequences, max_context=0, kv_tokens=0)
        self.stats = EngineStats(num_running=0, num_waiting=0, kv_used=0.0, num_generated=0)
        self._num_generated = 0

    @property
    def is_alive(self) -> bool:
        """False before the start and after the thread ended, for whatever reason."""
        return self._thread is not None and self._thread.is_alive()

    async def start(self) -> None:
        """Load the model. Raises ConfigurationError where it cannot be served."""
        # A daemon: a step that never ends must not keep the process from exiting.
        self._thread = threading.Thread(target=self._main, name="sage-model", daemon=True)
        self._thread.start()
        await self._loaded

    def submit(self, submission: Submission) -> None:
        """Queue a request; its stream gets tokens, then `Completed` or an error."""
        self._commands.put(submission)

    def remove(self, request_id: str) -> None:
        """Free the sequence of `request_id` before the next step."""
        self._commands.put(request_id)

    async def stop(self) -> None:
        """End the thread after its current step and free the model."""
        if self._thread is not None:
            self._commands.put(None)
            await asyncio.to_thread(self._thread.join, 3.0)

    def _main(self) -> None:
        try:
            self._load()
        except SageError as error:
            self._from_thread(self._settle_load, error)
            return
        except Exception as error:  # loaders raise anything; it is told as a setting that cannot be served
            message = f"model {self._options.path} cannot be loaded: {error}"
            self._from_thread(self._settle_load, ConfigurationError(message))
            return
        self._from_thread(self._settle_load, None)
        while self._take_commands():
            try:
                self._step()
            except Exception as error:  # a failed step fails its sequences, not the thread
                self._fail_all(error)
            self._publish()

    def _settle_load(self, error: SageError | None) -> None:
        if self._loaded.done():
            return
        if error is None:
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(error)

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        options = self._options
        if options.threads is not None:
            # OpenMP keeps the number per thread, so it is set in the one that computes.
            torch.set_num_threads(options.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path = str(options.path)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=_dtype(options.dtype, device))
        model = model.to(device).eval()
        self._defaults, self._eos_ids = _generation_defaults(model, self._tokenizer)
        self._vocab_size = model.get_input_embeddings().weight.shape[0]
        max_context = _max_context(model, self._tokenizer, options.max_context)
        bytes_per_token = kv_bytes_per_token(model)
        fits = _cache_bytes(device) // max(1, bytes_per_token)
        max_context = min(max_context, fits)
        kv_tokens = min(fits, options.max_sequences * max_context)
        self.capacity = Capacity(
            max_sequences=options.max_sequences,
            max_context=max_context,
            kv_tokens=kv_tokens,
            device=device_name(str(device)),
        )
        self._batch = RollingBatch(
            model,
            max_sequences=options.max_sequences,
            kv_tokens=kv_tokens,
            pad_id=min(self._eos_ids, default=0),
        )
        self._decode = decoder_of(self._tokenizer)

    def _take_commands(self) -> bool:
        """Apply what was asked; waits while there is nothing to step. False: the thread is to end."""
        is_blocking = self._batch.is_idle
        while True:
            try:
                command = self._commands.get(block=is_blocking)
            except queue.Empty:
                return True
            is_blocking = False
            if command is None:
                return False
            if isinstance(command, str):
                self._forget(command)
            else:
                self._admit(command)

    def _admit(self, submission: Submission) -> None:
        """Tokenize and check a request. On this thread, since tokenizers are not safe to share between two."""
        request = submission.request
        try:
            ids = prompt_ids(self._tokenizer, request, vocab_size=self._vocab_size)
            resumed = resumed_ids(self._tokenizer, request)
            limit = output_limit(request, num_prompt=len(ids), max_context=self.capacity.max_context)
            sampler = Sampler(request.sampling, self._defaults, ids, resumed)
        except SageError as error:
            self._deliver(submission.stream, error)
            self._publish()
            return
        except Exception as error:  # a chat template may raise anything; it costs this request alone
            self._log.exception("prompt_rejected", request_id=submission.request_id)
            self._deliver(submission.stream, Internal(f"the prompt could not be prepared: {error!r}"))
            self._publish()
            return
        sequence = Sequence(
            submission.request_id,
            ids + resumed,
            max_length=len(ids) + limit,
            sampler=sampler,
            index=len(resumed),
            priority=submission.priority,
        )
        running = _Running(
            submission,
            sequence,
            Detokenizer(self._decode, context=sequence.ids),
            TextAssembler(request.sampling.stop),
            num_prompt=len(ids),
            limit=limit,
        )
        if len(resumed) >= limit:
            self._complete(running, "length")
            self._publish()
            return
        self._running[submission.request_id] = running
        self._batch.add(sequence)

    def _step(self) -> None:
        emitted = self._batch.step()
        for sequence, token_id in emitted:
            running = self._running.get(sequence.request_id)
            if running is not None:
                self._take_token(running, token_id)
        self._num_generated += len(emitted)

    def _take_token(self, running: _Running, token_id: int) -> None:
        if not running.first_token:
            running.first_token = time.monotonic()
        if token_id in self._eos_ids:
            self._end(running, "stop")
            return
        released = running.assembler.push((token_id,), running.detokenizer.push(token_id))
        if released is not None:
            self._deliver(running.submission.stream, released)
        if running.assembler.is_stopped:
            self._end(running, "stop")
        elif running.sequence.index >= running.limit:
            self._end(running, "length")

    def _end(self, running: _Running, reason: str) -> None:
        rest = running.assembler.finish()
        if rest is not None:
            self._deliver(running.submission.stream, rest)
        self._complete(running, reason)
        self._forget(running.submission.request_id)

    def _complete(self, running: _Running, reason: str) -> None:
        now, submitted = time.monotonic(), running.submission.submitted
        first = running.first_token or now
        usage = Usage(prompt_tokens=running.num_prompt, completion_tokens=running.sequence.index)
        timings = Timings(prefill_ms=(first - submitted) * 1e3, decode_ms=(now - first) * 1e3)
        self._deliver(
            running.submission.stream, Completed(finish_reason=reason, usage=usage, timings=timings)
        )

    def _forget(self, request_id: str) -> None:
        self._batch.remove(request_id)
        self._running.pop(request_id, None)

    def _fail_all(self, error: Exception) -> None:
        """A step failed (most often: out of memory). Its requests are lost, the next ones may do better."""
        self._log.error("engine_step_failed", num_requests=len(self._running), exc_info=error)
        for running in self._running.values():
            self._deliver(running.submission.stream, EngineError(f"the engine failed in a step: {error!r}"))
        self._running.clear()
        self._batch.clear()

    def _deliver(self, stream: EventStream, event: Tokens | Completed | SageError) -> None:
        self._outbox.append(_Delivery(stream, event))

    def _publish(self) -> None:
        """Send what gathered to the event loop, in one call."""
        batch = self._batch
        self.stats = EngineStats(
            num_running=batch.num_running,
            num_waiting=batch.num_waiting,
            kv_used=batch.num_resident / max(1, self.capacity.kv_tokens),
            num_generated=self._num_generated,
        )
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._from_thread(_hand_out, outbox)

    def _from_thread(self, function: Callable[..., None], argument: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            # The loop closed while this thread was in a step; nobody reads any more.
            self._commands.put(None)


def _hand_out(outbox: list[_Delivery]) -> None:
    for delivery in outbox:
        if isinstance(delivery.event, SageError):
            delivery.stream.fail(delivery.event)
        else:
            delivery.stream.put(delivery.event)


def _dtype(name: str, device: torch.device) -> Any:
    if name != "auto":
        return getattr(torch, name)
    # Without AMX or native bfloat16, a CPU computes bfloat16 slower than float32.
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type == "cpu" and not has_bfloat16():
        return torch.float32
    return "auto"


def _generation_defaults(model: Any, tokenizer: Any) -> tuple[SamplingDefaults, frozenset[int]]:
    config = model.generation_config
    eos = config.eos_token_id
    ids = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    defaults = SamplingDefaults(
        temperature=1.0 if config.temperature is None else float(config.temperature),
        top_p=1.0 if config.top_p is None else float(config.top_p),
        # 50 is the library's own default, not the model's recommendation; OpenAI's API has no top_k.
        top_k=0 if config.top_k in (None, 50) else int(config.top_k),
        repetition_penalty=float(config.repetition_penalty or 1.0),
    )
    return defaults, frozenset(ids)


def _max_context(model: Any, tokenizer: Any, asked: int | None) -> int:
    config = model.config.get_text_config()
    limits = [
        limit
        for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        # Tokenizers without a limit say 10**30.
        if limit is not None and 0 < limit < 10**9
    ]
    own = min(limits, default=4096)
    if asked is not None and asked > own:
        raise ConfigurationError(f"llm_worker.max_context is {asked}; this model has {own}")
    return asked or own


def _cache_bytes(device: torch.device) -> int:
    """A quarter of RAM, or 80 % of the GPU memory that the weights left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
