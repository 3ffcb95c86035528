"""A batch that sequences join and leave between steps, over a Hugging Face causal language model. Needs torch.

Owned by one thread. Prompts are prefilled in chunks beside the running batch, then their rows are joined to it;
rows are left-padded, so that the newest position of all of them is the last column.

Why not transformers' own ContinuousBatchingManager (5.23): on CPU its paged attention gathers the cache through
index tensors in every step. Measured with one thread on the tiny Llama of `testing.py`, 64 tokens in and out, tokens/s
at 1 / 8 / 64 sequences: 1,336 / 5,517 / 3,044; this batch with text out: 1,849 / 8,760 / 13,411. It also samples all
requests with one set of logits processors and one seed, so a greedy and a seeded request cannot share a batch.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from sage_core import ConfigurationError
from sage_llm_worker.engines.sampling import Sampler, score
from sage_llm_worker.vocabulary import ScoredToken

__all__ = ["Emission", "RollingBatch", "Sequence", "kv_bytes_per_token"]

_PREFILL_TOKENS: Final = 1024
_SCORED_PREFILL_TOKENS: Final = 128
"""A chunk whose every position is scored: its logits take 4 bytes for each token of the vocabulary."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One request. `ids` is the prompt and what earlier attempts generated; `index` the number of the next token.

    With `scores_prompt`, `prompt_scores` has all ids but the first once the first token is emitted.
    """

    request_id: str
    ids: list[int]
    max_length: int
    sampler: Sampler
    index: int = 0
    priority: int = 0
    scores_prompt: bool = False
    prompt_scores: list[ScoredToken] = field(default_factory=list)
    length: int = field(init=False)
    last_id: int = -1

    def __post_init__(self) -> None:
        self.length = len(self.ids)


@dataclass(frozen=True, slots=True)
class Emission:
    """A new token of a sequence, scored where its sampler says so."""

    sequence: Sequence
    token_id: int
    scored: ScoredToken | None = None


@dataclass(slots=True)
class _Prefill:
    rows: list[Sequence]
    ids: torch.Tensor
    mask: torch.Tensor
    cache: Any
    done: int = 0


class RollingBatch:
    """All sequences of one model. `kv_tokens` bounds rows times columns of the joint cache."""

    def __init__(self, model: Any, *, max_sequences: int, kv_tokens: int, pad_id: int = 0) -> None:
        self._model = model
        self._device = model.device
        self._max_sequences = max_sequences
        self._kv_tokens = kv_tokens
        self._pad_id = pad_id
        self._rows: list[Sequence] = []
        self._cache: Any = None
        self._mask = torch.empty((0, 0), dtype=torch.long, device=self._device)
        self._prefill: _Prefill | None = None
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = 0
        self._removed: set[str] = set()

    @property
    def is_idle(self) -> bool:
        """True while a step would do nothing."""
        return not (self._rows or self._prefill or self._waiting)

    @property
    def num_running(self) -> int:
        """Rows in the batch or in prefill."""
        rows = self._rows + (self._prefill.rows if self._prefill else [])
        return sum(row.request_id not in self._removed for row in rows)

    @property
    def num_waiting(self) -> int:
        """Sequences without a row."""
        return len(self._waiting)

    @property
    def num_resident(self) -> int:
        """Tokens in the cache, padding left out."""
        return sum(row.length for row in self._rows if row.request_id not in self._removed)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence: higher priority first, then first come first served."""
        self._arrivals += 1
        heapq.heappush(self._waiting, (-sequence.priority, self._arrivals, sequence))

    def remove(self, request_id: str) -> None:
        """Free a sequence in any phase; its row goes before the next step. Unknown ids are ignored."""
        kept = [entry for entry in self._waiting if entry[2].request_id != request_id]
        if len(kept) < len(self._waiting):
            self._waiting = kept
            heapq.heapify(self._waiting)
        rows = self._rows + (self._prefill.rows if self._prefill else [])
        if any(row.request_id == request_id for row in rows):
            self._removed.add(request_id)

    def clear(self) -> None:
        """Forget everything, after an error in a step."""
        self._rows, self._cache, self._prefill, self._waiting = [], None, None, []
        self._removed.clear()

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self) -> list[Emission]:
        """Prefill one chunk, decode one token of every running row; return the new tokens.

        The caller removes sequences that are complete.
        """
        self._drop_removed()
        emitted = self._decode() if self._rows else []
        if self._prefill is None:
            self._prefill = self._start_prefill()
        if self._prefill is not None:
            emitted += self._advance_prefill(self._prefill)
        return emitted

    def _decode(self) -> list[Emission]:
        ids = torch.tensor([[row.last_id] for row in self._rows], device=self._device)
        positions = torch.tensor([[row.length] for row in self._rows], device=self._device)
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(self._rows), 1))], dim=1)
        logits = self._forward(ids, self._mask, positions, self._cache)
        for row in self._rows:
            row.length += 1
        return self._sample(self._rows, logits[:, -1, :])

    def _start_prefill(self) -> _Prefill | None:
        """Take waiting sequences while they fit: rows, cache, and one chunk's worth of padded prompt tokens."""
        rows: list[Sequence] = []
        columns = max((row.max_length for row in self._rows), default=0)
        while self._waiting:
            head = self._waiting[0][2]
            num_rows = len(self._rows) + len(rows) + 1
            columns = max(columns, head.max_length)
            widest = max(head.length, *(row.length for row in rows)) if rows else head.length
            if rows and widest * (len(rows) + 1) > _PREFILL_TOKENS:
                break
            is_alone = not self._rows and not rows
            if not is_alone and (num_rows > self._max_sequences or num_rows * columns > self._kv_tokens):
                break
            rows.append(heapq.heappop(self._waiting)[2])
        if not rows:
            return None
        width = max(row.length for row in rows)
        ids = torch.full((len(rows), width), self._pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, width - row.length :] = torch.tensor(row.ids)
            mask[number, width - row.length :] = 1
        return _Prefill(rows, ids.to(self._device), mask.to(self._device), _new_cache())

    def _advance_prefill(self, prefill: _Prefill) -> list[Emission]:
        """Run the next chunk; after the last one, join the rows to the batch."""
        is_scored = any(row.scores_prompt for row in prefill.rows)
        chunk = (_SCORED_PREFILL_TOKENS if is_scored else _PREFILL_TOKENS) // len(prefill.rows)
        end = min(prefill.done + max(1, chunk), prefill.ids.shape[1])
        positions = (prefill.mask.cumsum(1) - 1).clamp(min=0)
        logits = self._forward(
            prefill.ids[:, prefill.done : end],
            prefill.mask[:, :end],
            positions[:, prefill.done : end],
            prefill.cache,
            num_kept=0 if is_scored else 1,
        )
        if is_scored:
            _score_prompts(prefill, end, logits)
        prefill.done = end
        if end < prefill.ids.shape[1]:
            return []
        self._prefill = None
        emitted = self._sample(prefill.rows, logits[:, -1, :])
        self._join(prefill)
        return [emission for emission in emitted if emission.sequence.request_id not in self._removed]

    def _forward(self, ids: Any, mask: Any, positions: Any, cache: Any, num_kept: int = 1) -> torch.Tensor:
        """Return the logits of the last `num_kept` positions of each row (0: of all), shape (rows, num_kept, vocab)."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=num_kept,
        )
        logits: torch.Tensor = output.logits
        return logits

    def _sample(self, rows: list[Sequence], logits: torch.Tensor) -> list[Emission]:
        largest: list[int] = logits.argmax(-1).tolist()
        emitted = []
        for number, row in enumerate(rows):
            token_id = largest[number]
            if not row.sampler.is_plain_argmax:
                # A copy on the CPU: `draw` changes it, and its generator lives there.
                token_id = row.sampler.draw(logits[number].to("cpu", torch.float32, copy=True), row.index)
            row.sampler.record(token_id)
            row.last_id = token_id
            row.index += 1
            num_top = row.sampler.num_logprobs
            scored = None if num_top is None else score(logits[number : number + 1], [token_id], num_top)[0]
            emitted.append(Emission(row, token_id, scored))
        return emitted

    def _join(self, prefill: _Prefill) -> None:
        """Put the rows of `prefill` below the batch, padding the narrower of the two on the left."""
        if not self._rows:
            self._rows, self._cache, self._mask = prefill.rows, prefill.cache, prefill.mask
            return
        width = max(self._mask.shape[1], prefill.mask.shape[1])
        self._mask = torch.cat([_widen(self._mask, width, 1), _widen(prefill.mask, width, 1)])
        for layer, other in zip(self._cache.layers, prefill.cache.layers, strict=True):
            layer.keys = torch.cat([_widen(layer.keys, width, 2), _widen(other.keys, width, 2)])
            layer.values = torch.cat([_widen(layer.values, width, 2), _widen(other.values, width, 2)])
        self._rows = self._rows + prefill.rows

    def _drop_removed(self) -> None:
        """Take removed rows out, and the columns that were wide for them alone."""
        if not self._removed:
            return
        if self._prefill and all(row.request_id in self._removed for row in self._prefill.rows):
            self._prefill = None
        kept = [number for number, row in enumerate(self._rows) if row.request_id not in self._removed]
        if len(kept) < len(self._rows):
            self._rows = [self._rows[number] for number in kept]
            if not self._rows:
                self._cache = None
            else:
                index = torch.tensor(kept, device=self._device)
                self._mask = self._mask[index]
                first = int(self._mask.any(0).long().argmax())
                self._mask = self._mask[:, first:]
                for layer in self._cache.layers:
                    layer.keys = layer.keys[index, :, first:]
                    layer.values = layer.values[index, :, first:]
        # Rows still in prefill keep their mark until they join.
        held = {row.request_id for row in self._prefill.rows} if self._prefill else set()
        self._removed &= held


def _new_cache() -> Any:
    from transformers import DynamicCache

    # Without the model's config every layer keeps all positions, which is what left-padded rows need; models
    # with sliding windows mask what is outside themselves.
    return DynamicCache()


def _score_prompts(prefill: _Prefill, end: int, logits: torch.Tensor) -> None:
    """Score what the chunk's columns, from `prefill.done` to `end`, say of the ids after them."""
    width = prefill.ids.shape[1]
    for number, row in enumerate(prefill.rows):
        first = max(prefill.done, width - row.length)
        last = min(end, width - 1)
        if not row.scores_prompt or first >= last:
            continue
        rows = logits[number, first - prefill.done : last - prefill.done]
        token_ids = prefill.ids[number, first + 1 : last + 1].tolist()
        row.prompt_scores += score(rows, token_ids, row.sampler.num_logprobs or 0)


def _widen(tensor: torch.Tensor, width: int, axis: int) -> torch.Tensor:
    missing = width - tensor.shape[axis]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[axis] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=axis)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def kv_bytes_per_token(model: Any) -> int:
    """Run one token through `model` and return the cache's bytes per token.

    Raises ConfigurationError for models whose state is not one key and value per position (state-space models
    and the like), which a rolling batch cannot join.
    """
    cache = _new_cache()
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    try:
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        sizes = [
            tensor.nbytes // 2
            for layer in cache.layers
            for tensor in (layer.keys, layer.values)
            if tensor.ndim == 4 and tensor.shape[2] == 2
        ]
    except (AttributeError, TypeError, NotImplementedError, KeyError) as error:
        raise ConfigurationError(
            f'the transformers engine cannot batch this architecture ({error}); use engine = "vllm"'
        ) from None
    if not sizes or len(sizes) != 2 * len(cache.layers):
        raise ConfigurationError(
            "the transformers engine cannot batch this architecture: its cache is not one key and value per "
            'position; use engine = "vllm"'
        )
    return sum(sizes)
