"""An engine without weights: the simulator's engine model in real time, with deterministic text.

Token `i` of an answer depends on the seed, the prompt and `i` alone, so any attempt on any host continues the same
text. Prompts are counted as the scheduler estimates them (`emulated_text` is the vocabulary). An answer has
`max_tokens` tokens, or as many as the last line of the prompt says (`sage-output-tokens: 37`): a length that nobody but
this engine knows beforehand. What else it does, always in the same way:

- a line `sage-reasoning: 20` at the end of the prompt: 20 words of reasoning come first, in the format `think`
- a chat with tools whose last message is a user's and asks for some of them (`emulated_script.called_tools`): the
  answer is those calls in the format `hermes`, with the shortest arguments that the tool's schema allows
- a structure: the answer is a short text that it allows (`shortest_text`); of several options, the first. Where a chat
  has tools and the structure allows a JSON list of calls, the list has the first call that is asked for
- `logit_bias`: the token with the highest bias, if that is 10 or more, is every word of the answer; those at -10 or
  less are never written
- `logprobs`: made-up ones, the same for the same token

Images are counted, at 256 tokens each, and not looked at. Other sampling parameters have no effect.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import msgspec

from sage_client.work_size import measure
from sage_core import BadRequest, Cancelled, ConfigurationError, Conflict, WorkerLost
from sage_llm_worker.echo import echo_pieces
from sage_llm_worker.engines.emulated_script import Plan, Planner, Script, Twist
from sage_llm_worker.engines.emulated_text import (
    NUM_WORDS,
    WORDS,
    bytes_of,
    check_ids,
    ids_of_prompt,
    logprobs_of,
    word_at,
)
from sage_llm_worker.formats import THINK
from sage_llm_worker.limits import check_sampling, num_resumed, output_limit
from sage_llm_worker.profiles import load_profile
from sage_llm_worker.streams import EventStream
from sage_llm_worker.text import TextAssembler
from sage_native import EngineModel
from sage_policy import EngineProfile
from sage_wire.messages import (
    ChatPrompt,
    Completed,
    Detokenize,
    Detokenized,
    Generate,
    TextPrompt,
    Timings,
    Tokenize,
    Tokenized,
    TokenPrompt,
    Tokens,
    Usage,
)
from sage_wire.prefix import BLOCK_TOKENS
from sage_worker.engine import Capacity, EngineStats, StepCost, TextFormats

__all__ = ["EmulatedEngine"]

_MAX_LATE: Final = 0.05
"""Seconds that steps may lag: an event loop that was blocked for longer does not make up for it in a burst."""


@dataclass(slots=True)
class _Request:
    request_id: str
    number: int
    stream: EventStream
    assembler: TextAssembler | None
    key: int
    script: Script
    twist: Twist | None
    num_prompt: int
    num_generated: int
    end: int
    reason: str
    submitted: float
    first_token: float = 0.0
    num_cached: int = 0
    is_cached_told: bool = False
    stop_reason: int | str | None = None

    def put(self, tokens: Tokens) -> None:
        """Hand over a piece of the answer; the first one says what came from the cache."""
        if self.num_cached and not self.is_cached_told:
            tokens = msgspec.structs.replace(tokens, num_cached=self.num_cached)
            self.is_cached_told = True
        self.stream.put(tokens)


class EmulatedEngine:
    """See `sage_worker.engine.Engine`."""

    name = "emulated"

    def __init__(
        self,
        model: str = "sage-emulated",
        *,
        profile: EngineProfile | str = "zero",
        profiles_file: Path | None = None,
        max_sequences: int | None = None,
        max_context: int | None = None,
        default_tokens: int = 128,
        noise_sigma: float = 0.0,
    ) -> None:
        """`max_sequences` and `max_context` override the profile's own limits.

        Steps take `noise_sigma`'s log-normal factor with mean 1 longer or shorter than the profile says.
        """
        self.model = model
        self._profile_or_name = profile
        self._profiles_file = profiles_file
        self._max_sequences = max_sequences
        self._max_context = max_context
        self._default_tokens = default_tokens
        self._noise_sigma = noise_sigma
        self._requests: dict[str, _Request] = {}
        self._by_number: dict[int, _Request] = {}
        self._unheard: set[int] = set()
        """Numbers of the requests without a token yet."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._num_submitted = 0
        self._num_generated = 0
        self._planner = Planner()

    async def start(self) -> None:
        """Load the profile and start the stepping loop. Raises ConfigurationError for a profile that cannot be used."""
        profile = self._profile_or_name
        if isinstance(profile, str):
            profile = load_profile(profile, self._profiles_file)
        profile = msgspec.structs.replace(
            profile,
            max_sequences=self._max_sequences or profile.max_sequences,
            max_context=self._max_context or profile.max_context,
        )
        options = msgspec.structs.asdict(profile)
        del options["description"]
        try:
            self._engine = EngineModel(**options)
        except ValueError as error:
            raise ConfigurationError(f"the emulated engine's profile cannot be used: {error}") from None
        self.profile = msgspec.structs.replace(profile, max_context=self._engine.max_sequence_tokens)
        # Otherwise what two prompts share would end inside a block of the engine.
        self._shares_prefixes = BLOCK_TOKENS % profile.block_tokens == 0
        self._task = asyncio.create_task(self._run(), name="emulated-engine")

    async def stop(self) -> None:
        """Abort everything and end the loop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for request_id in list(self._requests):
            await self.abort(request_id)
        self._planner.close()

    @property
    def formats(self) -> TextFormats:
        """What `emulated_script` writes."""
        return TextFormats(tools="hermes", reasoning=THINK)

    @property
    def capacity(self) -> Capacity:
        """The limits of the profile."""
        profile = self.profile
        return Capacity(
            max_sequences=profile.max_sequences,
            max_context=profile.max_context,
            kv_tokens=profile.kv_tokens,
            max_step_tokens=profile.max_step_tokens,
            block_tokens=profile.block_tokens,
            # Each stands for hardware of its own, however many of them run on one laptop.
            device=f"emulated:{os.getpid()}",
            takes_images=True,
            step_cost=StepCost(**{field.name: getattr(profile, field.name) for field in fields(StepCost)}),
        )

    def stats(self) -> EngineStats:
        """Counts of the model."""
        engine = self._engine
        return EngineStats(
            num_running=engine.num_running,
            num_waiting=engine.num_waiting,
            kv_used=engine.kv_used,
            num_generated=self._num_generated,
        )

    def health(self) -> str:
        """`ok`, unless the stepping loop ended."""
        if self._task is not None and self._task.done():
            return "the stepping loop ended"
        return "ok"

    async def generate(
        self, request_id: str, request: Generate, *, priority: int = 0
    ) -> AsyncGenerator[Tokens | Completed, None]:
        """Yield one `Tokens` a step, then `Completed`; see `Engine.generate`."""
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt) and not prompt.messages:
            raise BadRequest("messages is empty; expected at least one message", param="messages")
        item = self._admit(request_id, request, await self._planner.plan(request), priority)
        try:
            if request.echo and request.resume is None:
                for piece in _echo(request):
                    yield piece
            if item.num_generated >= item.end:
                yield _completed(item, Timings())
                return
            while True:
                event = await item.stream.get()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            item.stream.close()
            self._forget(item)

    async def abort(self, request_id: str) -> None:
        """Free a sequence; its iterator raises Cancelled."""
        item = self._requests.get(request_id)
        if item is not None:
            item.stream.fail(Cancelled("the request was aborted"))
            self._forget(item)

    async def tokenize(self, request: Tokenize) -> Tokenized:
        """Four bytes to a token; there are no special tokens to add."""
        ids = ids_of_prompt(request.prompt)
        strings = [bytes_of([token_id]).decode("utf-8", "replace") for token_id in ids]
        return Tokenized(token_ids=ids, strings=strings if request.with_strings else [])

    async def detokenize(self, request: Detokenize) -> Detokenized:
        """The reverse."""
        check_ids(request.token_ids, "tokens")
        return Detokenized(text=bytes_of(request.token_ids).decode("utf-8", "replace"))

    def _admit(self, request_id: str, request: Generate, plan: Plan, priority: int) -> _Request:
        if request_id in self._requests:
            raise Conflict(f"request {request_id} is already running on this engine")
        sampling = request.sampling
        check_sampling(sampling)
        size, resumed = measure(request), num_resumed(request)
        num_prompt = max(1, size.num_prompt_tokens - resumed)
        if isinstance(request.prompt, TokenPrompt):
            check_ids(request.prompt.token_ids, "prompt")
        wanted = plan.wanted
        if wanted is not None and not plan.is_whole:
            wanted = None if sampling.ignore_eos else max(wanted, sampling.min_tokens)
        limit = output_limit(
            request,
            num_prompt=num_prompt,
            max_context=self.profile.max_context,
            default=len(plan.script) + self._default_tokens if wanted is None else wanted,
        )
        end = limit if wanted is None else min(limit, wanted)
        is_cut = sampling.max_tokens is not None if wanted is None else end < wanted
        self._num_submitted += 1
        item = _Request(
            request_id=request_id,
            number=self._num_submitted,
            stream=EventStream(request.gather_ms / 1000),
            assembler=TextAssembler(sampling.stop, sampling.min_tokens - resumed) if sampling.stop else None,
            key=_text_key(request),
            script=plan.script,
            twist=Twist.of(sampling),
            num_prompt=num_prompt,
            num_generated=resumed,
            end=end,
            reason="length" if is_cut else "stop",
            submitted=time.monotonic(),
        )
        if resumed >= end:
            return item
        # A chat's hashed text has more than its messages: names, roles. The engine caches what it counts.
        num_blocks = num_prompt // BLOCK_TOKENS if self._shares_prefixes else 0
        self._engine.submit(
            item.number,
            num_prompt,
            resumed,
            priority,
            size.blocks[:num_blocks],
            prefix_block=BLOCK_TOKENS,
            num_output=end,
        )
        self._requests[request_id] = self._by_number[item.number] = item
        self._unheard.add(item.number)
        self._wake.set()
        return item

    def _forget(self, item: _Request) -> None:
        self._unheard.discard(item.number)
        if self._by_number.pop(item.number, None) is not None:
            del self._requests[item.request_id]
            self._engine.remove(item.number)

    async def _run(self) -> None:
        try:
            await self._step_for_ever()
        except Exception as error:  # nobody may wait for an engine that has stopped; raised again below
            for item in self._requests.values():
                item.stream.fail(WorkerLost(f"the emulated engine stopped: {error!r}"))
            raise

    async def _step_for_ever(self) -> None:
        """All tokens of a step leave when the time of the step has passed: first tokens in a turn of the event loop of
        their own, then all others in one turn. Behind 63 others, a first token left 1 ms later.
        """
        engine = self._engine
        is_instant, sigma = self.profile.is_instant, self._noise_sigma
        due = time.monotonic()
        while True:
            if engine.is_idle:
                self._wake.clear()
                await self._wake.wait()
                due = time.monotonic()
            seconds, emitting = engine.step()
            if is_instant:
                # One turn of the loop: the readers take this step's tokens before the next step.
                await asyncio.sleep(0)
            else:
                # Steps follow their own clock, so that late wake-ups do not add up.
                if sigma:
                    seconds *= random.lognormvariate(-sigma * sigma / 2, sigma)
                now = time.monotonic()
                due = max(due + seconds, now - _MAX_LATE)
                await asyncio.sleep(max(0.0, due - now))
            now = time.monotonic()
            if self._unheard and not is_instant:
                first = self._unheard.intersection(emitting)
                if first:
                    self._emit_all(sorted(first), now)
                    # The turn in which they leave: nothing is waited for.
                    await asyncio.sleep(0)
                    emitting = [number for number in emitting if number not in first]
            self._emit_all(emitting, now)

    def _emit_all(self, numbers: Sequence[int], now: float) -> None:
        by_number = self._by_number
        for number in numbers:
            item = by_number.get(number)
            if item is not None:
                self._emit(item, now)

    def _emit(self, item: _Request, now: float) -> None:
        index, script, twist = item.num_generated, item.script, item.twist
        if index < len(script):
            token_id, text = script[index]
        else:
            token_id = word_at(item.key, index) if twist is None else twist.word_at(item.key, index)
            if index == len(script) and token_id < NUM_WORDS and (twist is None or twist.forced is None):
                token_id += NUM_WORDS  # the answer does not begin with a space
            text = (
                WORDS[token_id] if token_id < len(WORDS) else bytes_of([token_id]).decode("utf-8", "replace")
            )
        item.num_generated = index + 1
        self._num_generated += 1
        if not item.first_token:
            item.first_token = now
            self._unheard.discard(item.number)
            item.num_cached = self._engine.num_cached(item.number)
        logprobs = None
        if twist is not None:
            if token_id in twist.stop_ids and index >= twist.min_tokens:
                item.reason, item.stop_reason = "stop", token_id
                self._end(item, now)
                return
            if twist.num_logprobs is not None:
                logprobs = logprobs_of(token_id, twist.num_logprobs)
        if item.assembler is None:
            if logprobs is None:
                item.put(Tokens(text=text, token_ids=[token_id]))
            else:
                item.put(Tokens(text=text, token_ids=[token_id], logprobs=[logprobs]))
        else:
            if (released := item.assembler.push((token_id,), text, logprobs=logprobs)) is not None:
                item.put(released)
            if item.assembler.is_stopped:
                item.reason, item.stop_reason = "stop", item.assembler.stopped_by
                self._finish(item, now)
                return
        if item.num_generated >= item.end:
            self._end(item, now)

    def _end(self, item: _Request, now: float) -> None:
        if item.assembler is not None and (rest := item.assembler.finish()) is not None:
            item.put(rest)
        self._finish(item, now)

    def _finish(self, item: _Request, now: float) -> None:
        self._forget(item)
        timings = Timings(
            prefill_ms=(item.first_token - item.submitted) * 1e3, decode_ms=(now - item.first_token) * 1e3
        )
        item.stream.put(_completed(item, timings))


def _completed(item: _Request, timings: Timings) -> Completed:
    usage = Usage(
        prompt_tokens=item.num_prompt, completion_tokens=item.num_generated, cached_tokens=item.num_cached
    )
    return Completed(finish_reason=item.reason, usage=usage, timings=timings, stop_reason=item.stop_reason)


def _echo(request: Generate) -> Iterator[Tokens]:
    prompt, num_logprobs = request.prompt, request.sampling.logprobs
    ids = ids_of_prompt(prompt)
    text = prompt.text if isinstance(prompt, TextPrompt) else bytes_of(ids).decode("utf-8", "replace")
    logprobs = (
        []
        if num_logprobs is None
        else [logprobs_of(token_id, num_logprobs, is_first=not place) for place, token_id in enumerate(ids)]
    )
    return echo_pieces(text, ids, logprobs)


def _text_key(request: Generate) -> int:
    """Hash what decides the text: seed and prompt."""
    return zlib.crc32(msgspec.msgpack.encode((request.sampling.seed, request.prompt)))
