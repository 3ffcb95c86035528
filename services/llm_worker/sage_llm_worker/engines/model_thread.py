"""The thread that owns a Hugging Face model: loads it, batches requests, turns tokens into text. Needs torch.

Commands come in through a queue; what a step produced leaves with one call into the event loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sage_core import ConfigurationError, EngineError, Internal, SageError, WorkerLost
from sage_llm_worker.echo import echo_pieces
from sage_llm_worker.engines.model_loading import LoadedModel, LoadOptions, load_model
from sage_llm_worker.engines.rolling_batch import Emission, Sequence
from sage_llm_worker.engines.sampling import Sampler
from sage_llm_worker.formats import markers_of
from sage_llm_worker.limits import check_vocabulary, output_limit
from sage_llm_worker.prompts import PromptReader
from sage_llm_worker.streams import EventStream
from sage_llm_worker.structures import advance
from sage_llm_worker.text import Detokenizer, TextAssembler
from sage_llm_worker.vocabulary import Vocabulary
from sage_telemetry import get_logger
from sage_wire.messages import ChatPrompt, Completed, Generate, Timings, Tokens, Usage
from sage_worker.engine import Capacity, EngineStats, TextFormats

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["ModelThread", "Submission"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked request on its way to the thread. `matcher`: of its structure, at the beginning."""

    request_id: str
    request: Generate
    priority: int
    stream: EventStream
    submitted: float
    matcher: LLMatcher | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """A function of the thread's own reader of prompts, and who waits for what it returns."""

    function: Callable[[PromptReader], Any]
    result: asyncio.Future[Any]


@dataclass(slots=True)
class _Running:
    submission: Submission
    sequence: Sequence
    detokenizer: Detokenizer
    assembler: TextAssembler
    num_prompt: int
    limit: int
    end_ids: frozenset[int]
    is_echo_due: bool = False
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
        self._commands: queue.SimpleQueue[Submission | _Call | str | None] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._outbox: list[_Delivery] = []
        self._thread: threading.Thread | None = None
        self._loaded: asyncio.Future[LoadedModel] = loop.create_future()
        self._calls: set[asyncio.Future[Any]] = set()
        self.capacity = Capacity(max_sequences=options.max_sequences, max_context=0, kv_tokens=0)
        self.formats = TextFormats()
        self.stats = EngineStats(num_running=0, num_waiting=0, kv_used=0.0, num_generated=0)
        self._num_generated = 0

    @property
    def is_alive(self) -> bool:
        """False before the start and after the thread ended, for whatever reason."""
        return self._thread is not None and self._thread.is_alive()

    async def start(self) -> Vocabulary:
        """Load the model and return its vocabulary. Raises ConfigurationError where it cannot be served."""
        # A daemon: a step that never ends must not keep the process from exiting.
        self._thread = threading.Thread(target=self._main, name="sage-model", daemon=True)
        self._thread.start()
        model = await self._loaded
        self.capacity, self.formats = model.capacity, model.reader.formats
        return model.vocabulary

    async def call(self, function: Callable[[PromptReader], T]) -> T:
        """Return what `function` makes of the reader of prompts, which only this thread may use."""
        result: asyncio.Future[T] = self._loop.create_future()
        self._calls.add(result)
        self._commands.put(_Call(function, result))
        try:
            return await result
        finally:
            self._calls.discard(result)

    def submit(self, submission: Submission) -> None:
        """Queue a request; its stream gets tokens, then `Completed` or an error."""
        self._commands.put(submission)

    def remove(self, request_id: str) -> None:
        """Free the sequence of `request_id` before the next step."""
        self._commands.put(request_id)

    async def stop(self) -> None:
        """End the thread after its current step and free the model."""
        for result in self._calls:
            if not result.done():
                result.set_exception(WorkerLost("the engine was stopped"))
        if self._thread is not None:
            self._commands.put(None)
            await asyncio.to_thread(self._thread.join, 3.0)

    def _main(self) -> None:
        try:
            self._model = load_model(self._options)
        except SageError as error:
            self._from_thread(_settle, (self._loaded, error))
            return
        except Exception as error:  # loaders raise anything; it is told as a setting that cannot be served
            message = f"model {self._options.path} cannot be loaded: {error}"
            self._from_thread(_settle, (self._loaded, ConfigurationError(message)))
            return
        self._batch = self._model.batch
        self._from_thread(_settle, (self._loaded, self._model))
        while self._take_commands():
            try:
                self._step()
            except Exception as error:  # a failed step fails its sequences, not the thread
                self._fail_all(error)
            self._publish()

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
            match command:
                case str():
                    self._forget(command)
                case _Call():
                    self._answer(command)
                case Submission():
                    self._admit(command)

    def _answer(self, call: _Call) -> None:
        outcome: Any
        try:
            outcome = call.function(self._model.reader)
        except SageError as error:
            outcome = error
        except Exception as error:  # a tokenizer may raise anything; it costs this call alone
            self._log.exception("tokenizer_failed")
            outcome = Internal(f"the tokenizer failed: {error!r}")
        self._from_thread(_settle, (call.result, outcome))

    def _admit(self, submission: Submission) -> None:
        """Tokenize and check a request. On this thread, since tokenizers are not safe to share between two."""
        try:
            running = self._prepare(submission)
        except SageError as error:
            self._deliver(submission.stream, error)
            self._publish()
            return
        except Exception as error:  # a chat template may raise anything; it costs this request alone
            self._log.exception("prompt_rejected", request_id=submission.request_id)
            self._deliver(submission.stream, Internal(f"the prompt could not be prepared: {error!r}"))
            self._publish()
            return
        if running.sequence.index >= running.limit and not running.is_echo_due:
            self._complete(running, "length")
            self._publish()
            return
        if running.sequence.sampler.is_complete:
            self._complete(running, "stop")
            self._publish()
            return
        self._running[submission.request_id] = running
        self._batch.add(running.sequence)

    def _prepare(self, submission: Submission) -> _Running:
        """Return the request ready to run, what comes before its first token delivered. Raises BadRequest."""
        request, model = submission.request, self._model
        sampling, reader = request.sampling, model.reader
        prompt = reader.read(request)
        limit = output_limit(request, num_prompt=len(prompt.ids), max_context=model.capacity.max_context)
        check_vocabulary(sampling, model.vocab_size)
        end_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos or submission.matcher is not None:
            end_ids |= model.eos_ids
        if submission.matcher is not None:
            advance(submission.matcher, prompt.resumed)
        is_fresh = request.resume is None
        is_echo_due = request.echo and is_fresh and sampling.logprobs is not None
        sequence = Sequence(
            submission.request_id,
            prompt.ids + prompt.resumed,
            max_length=len(prompt.ids) + limit,
            sampler=Sampler(
                sampling,
                model.defaults,
                prompt.ids,
                prompt.resumed,
                end_ids=end_ids,
                matcher=submission.matcher,
            ),
            index=len(prompt.resumed),
            priority=submission.priority,
            scores_prompt=is_echo_due,
        )
        if request.echo and is_fresh and not is_echo_due:
            for piece in echo_pieces(reader.echoed_text(request, prompt.ids), prompt.ids):
                self._deliver(submission.stream, piece)
        if prompt.preface and is_fresh:
            self._deliver(submission.stream, Tokens(text=prompt.preface, num_tokens=0))
        has_tools = isinstance(request.prompt, ChatPrompt) and bool(request.prompt.tools)
        decode = reader.decoder(markers_of(reader.formats, has_tools=has_tools))
        return _Running(
            submission,
            sequence,
            Detokenizer(decode, context=sequence.ids),
            TextAssembler(sampling.stop, sampling.min_tokens - len(prompt.resumed)),
            num_prompt=len(prompt.ids),
            limit=limit,
            end_ids=end_ids,
            is_echo_due=is_echo_due,
        )

    def _step(self) -> None:
        emitted = self._batch.step()
        for emission in emitted:
            running = self._running.get(emission.sequence.request_id)
            if running is not None:
                self._take_token(running, emission)
        self._num_generated += len(emitted)

    def _take_token(self, running: _Running, emission: Emission) -> None:
        sequence, token_id = running.sequence, emission.token_id
        if not running.first_token:
            running.first_token = time.monotonic()
        if running.is_echo_due:
            self._deliver_echo(running)
            if running.limit == 0:
                sequence.index = 0  # the token was only needed to have the prompt read
                self._end(running, "length")
                return
        if token_id in running.end_ids:
            self._end(running, "stop", None if token_id in self._model.eos_ids else token_id)
            return
        scored = emission.scored
        logprobs = None if scored is None else self._model.vocabulary.token_logprobs(scored)
        text = running.detokenizer.push(token_id)
        released = running.assembler.push((token_id,), text, logprobs=logprobs)
        if released is not None:
            self._deliver(running.submission.stream, released)
        try:
            sequence.sampler.check()
        except EngineError as error:
            self._deliver(running.submission.stream, error)
            self._forget(sequence.request_id)
            return
        if running.assembler.is_stopped:
            self._end(running, "stop", running.assembler.stopped_by)
        elif sequence.sampler.is_complete:
            self._end(running, "stop")
        elif sequence.index >= running.limit:
            self._end(running, "length")

    def _deliver_echo(self, running: _Running) -> None:
        running.is_echo_due = False
        submission, model = running.submission, self._model
        ids = running.sequence.ids[: running.num_prompt]
        logprobs = [model.vocabulary.first_of_prompt(ids[0])]
        logprobs += map(model.vocabulary.token_logprobs, running.sequence.prompt_scores)
        for piece in echo_pieces(model.reader.echoed_text(submission.request, ids), ids, logprobs):
            self._deliver(submission.stream, piece)

    def _end(self, running: _Running, reason: str, stop_reason: int | str | None = None) -> None:
        rest = running.assembler.finish()
        if rest is not None:
            self._deliver(running.submission.stream, rest)
        self._complete(running, reason, stop_reason)
        self._forget(running.submission.request_id)

    def _complete(self, running: _Running, reason: str, stop_reason: int | str | None = None) -> None:
        now, submitted = time.monotonic(), running.submission.submitted
        first = running.first_token or now
        completed = Completed(
            finish_reason=reason,
            usage=Usage(prompt_tokens=running.num_prompt, completion_tokens=running.sequence.index),
            timings=Timings(prefill_ms=(first - submitted) * 1e3, decode_ms=(now - first) * 1e3),
            stop_reason=stop_reason,
        )
        self._deliver(running.submission.stream, completed)

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


def _settle(outcome: tuple[asyncio.Future[Any], Any]) -> None:
    future, value = outcome
    if future.done():
        return
    if isinstance(value, SageError):
        future.set_exception(value)
    else:
        future.set_result(value)
