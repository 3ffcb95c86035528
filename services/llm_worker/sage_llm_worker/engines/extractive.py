"""The reader that answers where there is no generative model: it quotes the sentences that fit the question best.

It never writes a sentence of its own about the matter. What it quotes comes from the prompt, each quotation with
the number of its passage. Same prompt, same answer, as long as the same ranking (with or without vectors) is used.
Tokens are words and punctuation marks: what `usage` reports is a count of those, not of any model's tokens.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sage_core import BadRequest, Cancelled, Conflict, SageError
from sage_llm_worker.limits import check_sampling, output_limit, refuse_images
from sage_llm_worker.ranking import Ranking, choose, rank_sentences, score_by_words
from sage_llm_worker.reading import Passage, Reading, Sentence, read_messages
from sage_llm_worker.structures import param_of
from sage_telemetry import get_logger
from sage_wire.messages import (
    ChatMessage,
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
from sage_worker.engine import Capacity, EngineStats, TextFormats

__all__ = ["EXTRACTIVE_MODEL", "EmbedTexts", "ExtractiveEngine"]

EXTRACTIVE_MODEL: Final = "sage-extractive-reader"

EmbedTexts = Callable[[list[str]], Awaitable[NDArray[np.float32]]]
"""Return L2-normalised vectors: float32, shape (len(texts), dim). Raises SageError where nobody can."""

_MAX_CONTEXT: Final = 131_072
_MAX_EMBEDDED: Final = 96
_WORDS_PER_PIECE: Final = 3
_RETRY_SECONDS: Final = 10.0
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PIECE = re.compile(rf"\s*(?:\S+\s*){{1,{_WORDS_PER_PIECE}}}")

_NO_CONTEXT: Final = (
    "No generative model is configured here, so I can only quote from documents, and this request brings none. "
    "Ask through a pipeline that retrieves some (for instance the model pipeline/rag-docs after `sage index DIR`), "
    "or add a generative model: `sage up --model NAME`, where NAME is a model on the Hugging Face hub or a folder."
)
_NOTHING_RELEVANT: Final = "None of the passages speaks of this; the first one begins:"
_INTRODUCTION: Final = "Quoted from the passages:"
_INTRODUCTION_EARLIER: Final = "Quoted from this conversation:"


class ExtractiveEngine:
    """See `sage_worker.engine.Engine`. Sampling parameters other than `max_tokens` and `stop` have no effect."""

    name = "extractive"
    model = EXTRACTIVE_MODEL

    def __init__(
        self,
        embed: EmbedTexts | None = None,
        *,
        model: str = EXTRACTIVE_MODEL,
        embed_budget: float = 2.0,
        max_quotes: int = 3,
        max_sequences: int | None = None,
        max_context: int | None = None,
    ) -> None:
        """`embed`: ranks by meaning too, if it answers within `embed_budget` seconds."""
        self.model = model
        self._embed = embed
        self._embed_budget = embed_budget
        self._max_quotes = max_quotes
        self._capacity = Capacity(
            max_sequences=max_sequences or 64,
            max_context=max_context or _MAX_CONTEXT,
            kv_tokens=0,
        )
        self._slots = asyncio.Semaphore(self._capacity.max_sequences)
        self._running: dict[str, asyncio.Task[str] | None] = {}
        self._aborted: set[str] = set()
        self._num_inside = 0
        self._num_generated = 0
        self._embed_again_at = 0.0

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Abort everything."""
        for request_id in list(self._running):
            await self.abort(request_id)

    @property
    def capacity(self) -> Capacity:
        """`max_context` counts words and punctuation marks."""
        return self._capacity

    @property
    def formats(self) -> TextFormats:
        """None: it calls no tools and does not reason."""
        return TextFormats()

    def stats(self) -> EngineStats:
        """There is no KV cache: `kv_used` is 0."""
        return EngineStats(
            num_running=self._num_inside,
            num_waiting=len(self._running) - self._num_inside,
            kv_used=0.0,
            num_generated=self._num_generated,
        )

    def health(self) -> str:
        """Always `ok`."""
        return "ok"

    async def generate(
        self, request_id: str, request: Generate, *, priority: int = 0
    ) -> AsyncGenerator[Tokens | Completed, None]:
        """Yield the answer in pieces of a few words; see `Engine.generate`. `priority` has no effect."""
        del priority
        if request_id in self._running:
            raise Conflict(f"request {request_id} is already running on this engine")
        _refuse_unknown(request)
        messages = _messages_of(request.prompt)
        num_prompt = sum(_num_tokens(message.content) for message in messages)
        limit = output_limit(request, num_prompt=num_prompt, max_context=self._capacity.max_context)
        self._running[request_id] = None
        try:
            async with self._slots:
                self._num_inside += 1
                try:
                    async for event in self._answer(request_id, request, messages, num_prompt, limit):
                        yield event
                finally:
                    self._num_inside -= 1
        finally:
            self._running.pop(request_id, None)
            self._aborted.discard(request_id)

    async def abort(self, request_id: str) -> None:
        """Stop a request at its next piece; its iterator raises Cancelled."""
        if request_id in self._running:
            self._aborted.add(request_id)
            task = self._running[request_id]
            if task is not None:
                task.cancel()

    async def tokenize(self, request: Tokenize) -> Tokenized:
        """Refused: words are no ids."""
        del request
        raise BadRequest(f"{EXTRACTIVE_MODEL} reads text; it has no token ids", param="model")

    async def detokenize(self, request: Detokenize) -> Detokenized:
        """Refused, as `tokenize` is."""
        del request
        raise BadRequest(f"{EXTRACTIVE_MODEL} reads text; it has no token ids", param="model")

    async def _answer(
        self,
        request_id: str,
        request: Generate,
        messages: list[ChatMessage],
        num_prompt: int,
        limit: int,
    ) -> AsyncGenerator[Tokens | Completed, None]:
        started = time.monotonic()
        delivered = request.resume.text if request.resume is not None else ""
        composing = asyncio.ensure_future(self._compose(messages, delivered))
        self._running[request_id] = composing
        try:
            text = await composing
        except asyncio.CancelledError:
            composing.cancel()
            self._raise_if_aborted(request_id)
            raise
        finally:
            self._running[request_id] = None
        read = time.monotonic()
        num_tokens, reason = _num_tokens(delivered), "stop"
        text, is_cut = _cut_to_tokens(text, limit - num_tokens)
        if is_cut:
            reason = "length"
        stop_reason: str | None = None
        ends = [(at, stop) for stop in request.sampling.stop if stop and (at := text.find(stop)) >= 0]
        if ends:
            at, stop_reason = min(ends)
            text, reason = text[:at], "stop"
        for match in _PIECE.finditer(text):
            self._raise_if_aborted(request_id)
            size = _num_tokens(match[0])
            num_tokens += size
            self._num_generated += size
            yield Tokens(text=match[0], num_tokens=size)
            # One piece a turn: others get theirs between.
            await asyncio.sleep(0)
        self._raise_if_aborted(request_id)
        yield Completed(
            finish_reason=reason,
            stop_reason=stop_reason,
            usage=Usage(prompt_tokens=num_prompt, completion_tokens=num_tokens),
            timings=Timings(prefill_ms=(read - started) * 1e3, decode_ms=(time.monotonic() - read) * 1e3),
        )

    async def _compose(self, messages: list[ChatMessage], delivered: str) -> str:
        """Return the answer, or what is left of it after `delivered`."""
        # Reading a long prompt takes longer than the event loop may be held up.
        reading, sentences, by_words = await asyncio.to_thread(_read, messages)
        if not sentences:
            answer, quotes = _NO_CONTEXT, []
        else:
            ranking = await self._rank(reading, sentences, by_words)
            chosen = choose(ranking, self._max_quotes)
            quotes = _quotations(reading, sentences, chosen)
            answer = "\n\n".join([_introduction(reading, chosen), *quotes])
        if answer.startswith(delivered):
            return answer[len(delivered) :]
        # The earlier attempt ranked otherwise (it had vectors, or had not): add only what it did not quote.
        missing = [quote for quote in quotes if quote not in delivered]
        return "".join(f"\n\n{quote}" for quote in missing)

    async def _rank(self, reading: Reading, sentences: list[Sentence], by_words: list[float]) -> Ranking:
        """Rank by words and, for the most promising sentences, by meaning."""
        order = sorted(range(len(sentences)), key=lambda index: -by_words[index])[:_MAX_EMBEDDED]
        vectors = await self._vectors([reading.question, *(sentences[index].text for index in order)])
        similarities: NDArray[np.float32] | None = None
        if vectors is not None:
            similarities = np.zeros(len(sentences), np.float32)
            similarities[order] = vectors[1:] @ vectors[0]
        return rank_sentences(sentences, by_words, similarities)

    async def _vectors(self, texts: list[str]) -> NDArray[np.float32] | None:
        if self._embed is None or time.monotonic() < self._embed_again_at:
            return None
        try:
            async with asyncio.timeout(self._embed_budget):
                vectors = await self._embed(texts)
        except (SageError, TimeoutError) as error:
            # Not every answer should wait for a pool that is not there.
            self._embed_again_at = time.monotonic() + _RETRY_SECONDS
            get_logger().warning("ranked_by_words_alone", reason=str(error) or "no answer within the budget")
            return None
        return vectors if vectors.shape[0] == len(texts) else None

    def _raise_if_aborted(self, request_id: str) -> None:
        if request_id in self._aborted:
            raise Cancelled("the request was aborted")


def _read(messages: Sequence[ChatMessage]) -> tuple[Reading, list[Sentence], list[float]]:
    reading = read_messages(messages)
    sentences = reading.sentences()
    return reading, sentences, score_by_words(reading, sentences)


def _introduction(reading: Reading, chosen: list[Sentence]) -> str:
    if not chosen:
        return _NOTHING_RELEVANT
    is_numbered = reading.passages[chosen[0].passage].number is not None
    return _INTRODUCTION if is_numbered else _INTRODUCTION_EARLIER


def _quotations(reading: Reading, sentences: list[Sentence], chosen: list[Sentence]) -> list[str]:
    """Return one quotation per run of neighbouring sentences, in the order of their best one."""
    if not chosen:
        return [_quoted(reading.passages[0], sentences[0].text)]
    by_place = {(sentence.passage, sentence.position): sentence for sentence in sentences}
    wanted = {(sentence.passage, sentence.position) for sentence in chosen}
    for sentence in chosen:
        # A sentence that announces something is worth little without it.
        follower = (sentence.passage, sentence.position + 1)
        if sentence.text.endswith(":") and follower in by_place:
            wanted.add(follower)
    quotations = []
    used: set[tuple[int, int]] = set()
    for sentence in chosen:
        place = (sentence.passage, sentence.position)
        if place in used:
            continue
        first = last = sentence.position
        while (sentence.passage, first - 1) in wanted:
            first -= 1
        while (sentence.passage, last + 1) in wanted:
            last += 1
        run = [(sentence.passage, position) for position in range(first, last + 1)]
        used.update(run)
        text = " ".join(by_place[place].text for place in run)
        quotations.append(_quoted(reading.passages[sentence.passage], text))
    return quotations


def _quoted(passage: Passage, text: str) -> str:
    citation = f" [{passage.number}]" if passage.number is not None else ""
    return f"“{text}”{citation}"


def _refuse_unknown(request: Generate) -> None:
    """Raise BadRequest for what a quotation cannot be: other sampling parameters than these have no effect at all."""
    sampling = request.sampling
    check_sampling(sampling)
    refuse_images(request)
    tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) else []
    for param, is_asked, what in (
        (param_of(request.structure) if request.structure else "", request.structure, "writes no structures"),
        ("tools", tools, "calls no tools"),
        ("echo", request.echo, "does not repeat the prompt"),
        ("logprobs", sampling.logprobs is not None, "has no log probabilities"),
        ("logit_bias", sampling.logit_bias, "has no vocabulary"),
        ("stop_token_ids", sampling.stop_token_ids, "has no vocabulary"),
    ):
        if is_asked:
            raise BadRequest(f"{EXTRACTIVE_MODEL} {what}; ask a generative model", param=param)


def _messages_of(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[ChatMessage]:
    if isinstance(prompt, ChatPrompt):
        if not prompt.messages:
            raise BadRequest("messages is empty; expected at least one message", param="messages")
        return prompt.messages
    if isinstance(prompt, TextPrompt):
        return [ChatMessage(role="user", content=prompt.text)]
    raise BadRequest(f"{EXTRACTIVE_MODEL} reads text; it has no token ids", param="prompt")


def _num_tokens(text: str) -> int:
    return sum(1 for _ in _TOKEN.finditer(text))


def _cut_to_tokens(text: str, limit: int) -> tuple[str, bool]:
    """Return the start of `text` with at most `limit` tokens, and whether anything was cut off."""
    for number, match in enumerate(_TOKEN.finditer(text)):
        if number >= limit:
            return text[: match.start()].rstrip(), True
    return text, False
