"""An engine without weights: the simulator's engine model in real time, with deterministic text.

Token `i` of an answer depends on the seed, the prompt and `i` alone, so any attempt on any host continues the same
text. Prompts are counted as the scheduler estimates them. An answer has `max_tokens` tokens, or as many as the last
line of the prompt says (`sage-output-tokens: 37`): a length that nobody but this engine knows beforehand.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import msgspec

from sage_client.work_size import measure
from sage_core import BadRequest, Cancelled, ConfigurationError, Conflict, WorkerLost
from sage_llm_worker.limits import num_resumed, output_limit
from sage_llm_worker.profiles import load_profile
from sage_llm_worker.streams import EventStream
from sage_llm_worker.text import TextAssembler
from sage_native import EngineModel
from sage_policy import EngineProfile
from sage_wire.messages import ChatPrompt, Completed, Generate, TextPrompt, Timings, Tokens, Usage
from sage_wire.prefix import BLOCK_TOKENS
from sage_worker.engine import Capacity, EngineStats, StepCost

__all__ = ["EmulatedEngine"]

_VOCABULARY: Final = (
    "able air also area back ball bank base bell bird blue boat body book call card care case cell city "
    "code cold cost dark data date deal deep desk door down draw east edge face fact fall farm fast fire "
    "fish flow food form free game gate give goal gold good gray hand head help high hill home hope hour"
)
_WORDS: Final = tuple(_VOCABULARY.split())
_MASK: Final = 0xFFFFFFFF
_LENGTH_MARK: Final = re.compile(r"(?:\A|\n)sage-output-tokens: (\d{1,7})\s*\Z")
_LONGEST_MARK: Final = 64
_MAX_LATE: Final = 0.05
"""Seconds that steps may lag: an event loop that was blocked for longer does not make up for it in a burst."""


@dataclass(slots=True)
class _Request:
    request_id: str
    number: int
    stream: EventStream
    assembler: TextAssembler | None
    key: int
    num_prompt: int
    num_generated: int
    end: int
    reason: str
    submitted: float
    first_token: float = 0.0
    num_cached: int = 0
    is_cached_told: bool = False

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
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._num_submitted = 0
        self._num_generated = 0

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
        item = self._admit(request_id, request, priority)
        if item.num_generated >= item.end:
            yield _completed(item, Timings())
            return
        try:
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

    def _admit(self, request_id: str, request: Generate, priority: int) -> _Request:
        if request_id in self._requests:
            raise Conflict(f"request {request_id} is already running on this engine")
        if isinstance(request.prompt, ChatPrompt) and not request.prompt.messages:
            raise BadRequest("messages is empty; expected at least one message", param="messages")
        size, resumed = measure(request), num_resumed(request)
        num_prompt = max(1, size.num_prompt_tokens - resumed)
        marked = _marked_length(request)
        limit = output_limit(
            request,
            num_prompt=num_prompt,
            max_context=self.profile.max_context,
            default=marked or self._default_tokens,
        )
        end = min(limit, marked or limit)
        is_cut = request.sampling.max_tokens is not None and end == limit
        self._num_submitted += 1
        item = _Request(
            request_id=request_id,
            number=self._num_submitted,
            stream=EventStream(),
            assembler=TextAssembler(request.sampling.stop) if request.sampling.stop else None,
            key=_text_key(request),
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
        self._wake.set()
        return item

    def _forget(self, item: _Request) -> None:
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
        """All tokens of a step leave in one turn of the event loop, when the time of the step has passed."""
        engine, by_number = self._engine, self._by_number
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
            for number in emitting:
                item = by_number.get(number)
                if item is not None:
                    self._emit(item, now)

    def _emit(self, item: _Request, now: float) -> None:
        index = item.num_generated
        word = ((item.key ^ (index * 0x9E3779B1)) * 0x85EBCA6B & _MASK) >> 20
        token_id = word % len(_WORDS)
        text = f" {_WORDS[token_id]}" if index else _WORDS[token_id]
        item.num_generated = index + 1
        self._num_generated += 1
        is_last = item.num_generated >= item.end
        if not item.first_token:
            item.first_token = now
            item.num_cached = self._engine.num_cached(item.number)
        if item.assembler is None:
            item.put(Tokens(text=text, token_ids=[token_id]))
        else:
            if (released := item.assembler.push((token_id,), text)) is not None:
                item.put(released)
            if item.assembler.is_stopped:
                item.reason = "stop"
                self._finish(item, now)
                return
            if is_last and (rest := item.assembler.finish()) is not None:
                item.put(rest)
        if is_last:
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
    return Completed(finish_reason=item.reason, usage=usage, timings=timings)


def _marked_length(request: Generate) -> int | None:
    """Return the length of the answer that the last line of the prompt gives."""
    match request.prompt:
        case ChatPrompt(messages=messages):
            text = messages[-1].content
        case TextPrompt(text=text):
            pass
        case _:
            return None
    found = _LENGTH_MARK.search(text[-_LONGEST_MARK:])
    return max(1, int(found[1])) if found else None


def _text_key(request: Generate) -> int:
    """Hash what decides the text: seed and prompt."""
    return zlib.crc32(msgspec.msgpack.encode((request.sampling.seed, request.prompt)))
