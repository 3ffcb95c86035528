"""Models as requests see them: tokens counted, duplicates computed once, batches shared between requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from sage_core import BadRequest, ContextLengthExceeded
from sage_embedding_worker.encoder import CrossEncoder, Encoder, Floats, Text, TextTokenizer
from sage_embedding_worker.vectors import unique
from sage_telemetry import metrics
from sage_wire.messages import Detokenized, Tokenized
from sage_worker import BatchLoop, FormedBatch
from sage_worker.batch_queue import BatchLimits

__all__ = ["Counted", "ModelLimits", "ServedCrossEncoder", "ServedEncoder"]

T = TypeVar("T", bound=Hashable)

_SLICE: Final = 256
"""Items a request has in the queue at once, so that a large request does not make a small one wait for all of it."""

_BATCH_SECONDS = metrics.histogram("sage_embedding_batch_seconds", "Time to compute one batch.", ["model"])
_BATCH_ITEMS = metrics.histogram(
    "sage_embedding_batch_items",
    "Distinct texts or pairs per batch.",
    ["model"],
    buckets=[1, 2, 4, 8, 16, 32, 64, 128],
)
_TOKENS = metrics.counter("sage_embedding_tokens_total", "Tokens read, without padding.", ["model"])


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """How a model is used. `refuses_overlong`: a text the model cannot read whole is an error, not cut."""

    max_batch_texts: int = 64
    max_batch_tokens: int = 8192
    refuses_overlong: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """One row per item asked for, and the tokens read for all of them. Vectors: (n, dim); scores: (n,)."""

    values: Floats
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Item(Generic[T]):
    content: T
    num_tokens: int


class _Served(Generic[T]):
    """What both kinds of model share. Tokens are counted in one thread, batches computed in another."""

    def __init__(
        self,
        name: str,
        max_tokens: int,
        limits: ModelLimits,
        tokenizer: TextTokenizer,
        count_tokens: Callable[[Sequence[T]], list[int]],
        compute: Callable[[Sequence[T]], Floats],
    ) -> None:
        self.name = name
        self._max_tokens = max_tokens
        self._limits = limits
        self._tokenizer = tokenizer
        self._count_tokens = count_tokens
        self._compute = compute
        self._counter = ThreadPoolExecutor(1, thread_name_prefix="count-tokens")
        self._loop: BatchLoop[_Item[T], Floats] = BatchLoop(
            self._run,
            length=lambda item: item.num_tokens,
            limits=BatchLimits(max_items=limits.max_batch_texts, max_padded=limits.max_batch_tokens),
            name="compute-batches",
        )

    @property
    def num_queued(self) -> int:
        """Items that wait for a batch."""
        return self._loop.num_queued

    async def start(self) -> None:
        """Start the thread that computes."""
        await self._loop.start()

    async def stop(self) -> None:
        """Fail what waits with Unavailable. Idempotent."""
        await self._loop.stop()
        self._counter.shutdown(wait=False)

    async def tokenize(self, text: str, *, adds_special_tokens: bool, with_strings: bool) -> Tokenized:
        """Return the ids that the model reads for `text`, uncut."""

        def read() -> Tokenized:
            ids = self._tokenizer.tokenize(text, adds_special_tokens=adds_special_tokens)
            return Tokenized(token_ids=ids, strings=self._tokenizer.strings(ids) if with_strings else [])

        return await asyncio.get_running_loop().run_in_executor(self._counter, read)

    async def detokenize(self, token_ids: Sequence[int]) -> Detokenized:
        """Return the text of ids. Raises BadRequest for ids that the model does not have."""
        self.check_ids(token_ids, "tokens")
        text = asyncio.get_running_loop().run_in_executor(
            self._counter, self._tokenizer.detokenize, token_ids
        )
        return Detokenized(text=await text)

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise BadRequest for ids that the model does not have."""
        size = self._tokenizer.vocab_size
        bad = next((token_id for token_id in token_ids if not 0 <= token_id < size), None)
        if bad is not None:
            raise BadRequest(
                f"token id {bad} is outside the vocabulary of {size} of {self.name!r}; ids are those of its own "
                f"tokenizer, and text may be sent instead",
                param=param,
            )

    async def compute(
        self, items: Sequence[T], *, is_background: bool = False, batch: FormedBatch | None = None
    ) -> Counted:
        """Return one row per item, in order; `items` is not empty. Background work gives way to all other.

        Requests of one `batch` are computed together, apart from all other.

        Raises ContextLengthExceeded for the first item too long, where that is refused, and what
        `BatchLoop.submit` raises.
        """
        distinct, inverse = unique(items)
        counting = asyncio.get_running_loop().run_in_executor(self._counter, self._count_tokens, distinct)
        lengths = np.array(await counting, dtype=np.int64)
        if self._limits.refuses_overlong:
            self._refuse_overlong(lengths[inverse])
        lengths = np.minimum(lengths, self._max_tokens)
        rows: list[Floats | None] = [None] * len(distinct)
        by_length = np.argsort(lengths, kind="stable")
        # A batch was cut by the scheduler: all of it at once.
        size = _SLICE if batch is None else len(distinct)
        for start in range(0, len(distinct), size):
            part = by_length[start : start + size].tolist()
            content = [_Item(distinct[i], int(lengths[i])) for i in part]
            results = await self._loop.submit(content, is_background=is_background, batch=batch)
            for i, row in zip(part, results, strict=True):
                rows[i] = row
        values = np.stack([row for row in rows if row is not None])[inverse]
        return Counted(values, int(lengths[inverse].sum()))

    def _refuse_overlong(self, lengths: npt.NDArray[np.int64]) -> None:
        for index in np.flatnonzero(lengths > self._max_tokens)[:1]:
            raise ContextLengthExceeded(
                f"input[{index}] has {lengths[index]} tokens; {self.name!r} reads at most {self._max_tokens}",
                param="input",
            )

    def _run(self, items: list[_Item[T]]) -> list[Floats]:
        """Compute one batch, in the thread; the same item of several requests once."""
        started = time.perf_counter()
        distinct, inverse = unique(items)
        values = self._compute([item.content for item in distinct])
        _BATCH_SECONDS.labels(self.name).observe(time.perf_counter() - started)
        _BATCH_ITEMS.labels(self.name).observe(len(distinct))
        _TOKENS.labels(self.name).inc(sum(item.num_tokens for item in distinct))
        return [values[place] for place in inverse]


class ServedEncoder(_Served[Text]):
    """A bi-encoder: embeds texts, and reranks by cosine."""

    def __init__(self, encoder: Encoder, limits: ModelLimits) -> None:
        super().__init__(
            encoder.name, encoder.max_tokens, limits, encoder, encoder.count_tokens, encoder.embed
        )
        self.dim = encoder.dim
        self.max_tokens = encoder.max_tokens

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        is_background: bool = False,
        batch: FormedBatch | None = None,
    ) -> Counted:
        """Return the cosine of the query and each document."""
        found = await self.compute([query, *documents], is_background=is_background, batch=batch)
        return Counted(found.values[1:] @ found.values[0], found.num_tokens)


class ServedCrossEncoder(_Served[tuple[str, str]]):
    """A cross-encoder: reranks by reading query and document together."""

    def __init__(self, encoder: CrossEncoder, limits: ModelLimits) -> None:
        super().__init__(
            encoder.name, encoder.max_tokens, limits, encoder, encoder.count_tokens, encoder.score
        )
        self.max_tokens = encoder.max_tokens

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        is_background: bool = False,
        batch: FormedBatch | None = None,
    ) -> Counted:
        """Return the score of each document, higher is better, in the model's own scale."""
        pairs = [(query, document) for document in documents]
        return await self.compute(pairs, is_background=is_background, batch=batch)
