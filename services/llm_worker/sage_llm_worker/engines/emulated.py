"""An engine without weights: real continuous batching in real time, deterministic text. For tests and load tests.

Token `i` of an answer depends on the seed, the prompt and `i` alone, so any attempt on any host continues the same
text. Prompts count a token for every four characters.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sage_core import BadRequest, Cancelled, Conflict, WorkerLost
from sage_llm_worker.engines.emulated_batch import EmulatedBatch, EmulatedSequence
from sage_llm_worker.limits import num_resumed, output_limit
from sage_llm_worker.step_time import StepProfile, load_profile
from sage_llm_worker.streams import EventStream
from sage_llm_worker.text import TextAssembler
from sage_wire.messages import ChatPrompt, Completed, Generate, TextPrompt, Timings, Tokens, Usage
from sage_worker.engine import Capacity, EngineStats

__all__ = ["EmulatedEngine"]

_VOCABULARY: Final = (
    "able air also area back ball bank base bell bird blue boat body book call card care case cell city "
    "code cold cost dark data date deal deep desk door down draw east edge face fact fall farm fast fire "
    "fish flow food form free game gate give goal gold good gray hand head help high hill home hope hour"
)
_WORDS: Final = tuple(_VOCABULARY.split())
_MASK: Final = 0xFFFFFFFF


@dataclass(slots=True)
class _Request:
    sequence: EmulatedSequence
    stream: EventStream
    assembler: TextAssembler | None
    key: int
    limit: int
    is_limit_asked: bool
    submitted: float
    first_token: float = 0.0


class EmulatedEngine:
    """See `sage_worker.engine.Engine`."""

    name = "emulated"

    def __init__(
        self,
        model: str = "sage-emulated",
        *,
        profile: StepProfile | str = "zero",
        profiles_file: Path | None = None,
        max_sequences: int | None = None,
        max_context: int | None = None,
        default_tokens: int = 128,
    ) -> None:
        """`max_sequences` and `max_context` override the profile's own limits."""
        self.model = model
        self._profile_or_name = profile
        self._profiles_file = profiles_file
        self._max_sequences = max_sequences
        self._max_context = max_context
        self._default_tokens = default_tokens
        self._requests: dict[str, _Request] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._num_generated = 0

    async def start(self) -> None:
        """Load the profile and start the stepping loop. Raises ConfigurationError for an unknown profile."""
        profile = self._profile_or_name
        if isinstance(profile, str):
            profile = load_profile(profile, self._profiles_file)
        profile = msgspec.structs.replace(
            profile,
            max_sequences=self._max_sequences or profile.max_sequences,
            max_context=min(self._max_context or profile.max_context, profile.kv_tokens),
        )
        self._batch = EmulatedBatch(profile)
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
        profile = self._batch.profile
        return Capacity(
            max_sequences=profile.max_sequences, max_context=profile.max_context, kv_tokens=profile.kv_tokens
        )

    def stats(self) -> EngineStats:
        """Counts of the batch."""
        batch = self._batch
        return EngineStats(
            num_running=batch.num_running,
            num_waiting=batch.num_waiting,
            kv_used=batch.num_resident / batch.profile.kv_tokens,
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
        if item is None:
            yield self._completed(request, num_resumed(request), "length")
            return
        try:
            while True:
                event = await item.stream.get()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            item.stream.close()
            self._forget(request_id)

    async def abort(self, request_id: str) -> None:
        """Free a sequence; its iterator raises Cancelled."""
        item = self._requests.get(request_id)
        if item is not None:
            item.stream.fail(Cancelled("the request was aborted"))
            self._forget(request_id)

    def _admit(self, request_id: str, request: Generate, priority: int) -> _Request | None:
        if request_id in self._requests:
            raise Conflict(f"request {request_id} is already running on this engine")
        num_prompt = _num_prompt_tokens(request)
        limit = output_limit(
            request,
            num_prompt=num_prompt,
            max_context=self._batch.profile.max_context,
            default=self._default_tokens,
        )
        resumed = num_resumed(request)
        if resumed >= limit:
            return None
        sequence = EmulatedSequence(request_id, num_prompt, resumed, priority)
        item = _Request(
            sequence,
            EventStream(),
            TextAssembler(request.sampling.stop) if request.sampling.stop else None,
            _text_key(request),
            limit,
            request.sampling.max_tokens is not None,
            asyncio.get_running_loop().time(),
        )
        self._requests[request_id] = item
        self._batch.submit(sequence)
        self._wake.set()
        return item

    def _forget(self, request_id: str) -> None:
        if self._requests.pop(request_id, None) is not None:
            self._batch.remove(request_id)

    async def _run(self) -> None:
        try:
            await self._step_for_ever()
        except Exception as error:  # nobody may wait for an engine that has stopped; raised again below
            for item in self._requests.values():
                item.stream.fail(WorkerLost(f"the emulated engine stopped: {error!r}"))
            raise

    async def _step_for_ever(self) -> None:
        """All tokens of a step leave in one turn of the event loop."""
        loop, batch = asyncio.get_running_loop(), self._batch
        is_instant = batch.profile.is_instant
        next_at = loop.time()
        while True:
            if batch.is_idle:
                self._wake.clear()
                await self._wake.wait()
                next_at = loop.time()
            step = batch.step()
            if is_instant:
                # One turn of the loop: the readers take this step's tokens before the next step.
                await asyncio.sleep(0)
            else:
                # Steps follow their own clock, so that late wake-ups do not add up; but a loop that was
                # blocked for long does not make up for it with a burst.
                next_at = max(next_at + step.seconds, loop.time() - 0.05)
                await asyncio.sleep(max(0.0, next_at - loop.time()))
            now = loop.time()
            for sequence in step.emitting:
                item = self._requests.get(sequence.request_id)
                if item is not None and item.sequence is sequence:
                    self._emit(item, now)

    def _emit(self, item: _Request, now: float) -> None:
        sequence = item.sequence
        index = sequence.num_generated
        word = ((item.key ^ (index * 0x9E3779B1)) * 0x85EBCA6B & _MASK) >> 20
        token_id = word % len(_WORDS)
        text = f" {_WORDS[token_id]}" if index else _WORDS[token_id]
        sequence.num_generated = index + 1
        self._num_generated += 1
        if not item.first_token:
            item.first_token = now
        is_last = sequence.num_generated >= item.limit
        if item.assembler is None:
            item.stream.put(Tokens(text=text, token_ids=[token_id]))
        else:
            released = item.assembler.push((token_id,), text)
            if released is not None:
                item.stream.put(released)
            if item.assembler.is_stopped:
                self._finish(item, "stop", now)
                return
            if is_last and (rest := item.assembler.finish()) is not None:
                item.stream.put(rest)
        if is_last:
            self._finish(item, "length" if item.is_limit_asked else "stop", now)

    def _finish(self, item: _Request, reason: str, now: float) -> None:
        self._forget(item.sequence.request_id)
        item.stream.put(
            Completed(
                finish_reason=reason,
                usage=Usage(
                    prompt_tokens=item.sequence.num_prompt, completion_tokens=item.sequence.num_generated
                ),
                timings=Timings(
                    prefill_ms=(item.first_token - item.submitted) * 1e3,
                    decode_ms=(now - item.first_token) * 1e3,
                ),
            )
        )

    def _completed(self, request: Generate, num_tokens: int, reason: str) -> Completed:
        usage = Usage(prompt_tokens=_num_prompt_tokens(request), completion_tokens=num_tokens)
        return Completed(finish_reason=reason, usage=usage)


def _num_prompt_tokens(request: Generate) -> int:
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        if not prompt.messages:
            raise BadRequest("messages is empty; expected at least one message", param="messages")
        return sum(4 + -(-len(message.content) // 4) for message in prompt.messages)
    if isinstance(prompt, TextPrompt):
        return max(1, -(-len(prompt.text) // 4))
    return max(1, len(prompt.token_ids))


def _text_key(request: Generate) -> int:
    """Hash what decides the text: seed and prompt."""
    return zlib.crc32(msgspec.msgpack.encode((request.sampling.seed, request.prompt)))
