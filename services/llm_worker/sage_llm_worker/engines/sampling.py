"""Choosing the next token from logits, one sequence at a time, and saying how likely it was. Needs torch."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sage_core import EngineError
from sage_llm_worker.vocabulary import ScoredToken
from sage_wire.messages import Sampling

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Sampler", "SamplingDefaults", "score"]


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's authors recommend (generation_config.json), used where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Sampler:
    """Draws the tokens of one sequence.

    What a request asks for is applied in vLLM's order: structure, `min_tokens`, bias, penalties, temperature, `min_p`,
    `top_k`, `top_p`.
    Token `i` is drawn with a generator seeded by (seed, i), so an answer that is resumed with the same seed after
    `i` tokens continues as if it had never stopped. A structure goes before `min_tokens`: once it allows nothing more,
    the answer ends.
    """

    __slots__ = (
        "_bias",
        "_counts",
        "_end_ids",
        "_frequency_penalty",
        "_generator",
        "_matcher",
        "_min_p",
        "_min_tokens",
        "_presence_penalty",
        "_prompt",
        "_repetition_penalty",
        "_seed",
        "_temperature",
        "_top_k",
        "_top_p",
        "num_logprobs",
    )

    def __init__(
        self,
        sampling: Sampling,
        defaults: SamplingDefaults,
        prompt: list[int],
        generated: list[int],
        *,
        end_ids: Collection[int] = (),
        matcher: LLMatcher | None = None,
    ) -> None:
        """`sampling` was checked. `generated`: tokens of earlier attempts, which `matcher` has taken already.

        `end_ids` may not come before `min_tokens`.
        """
        self._temperature = _given(sampling.temperature, defaults.temperature)
        self._top_p = _given(sampling.top_p, defaults.top_p)
        self._top_k = max(0, sampling.top_k if sampling.top_k is not None else defaults.top_k)
        self._min_p = _given(sampling.min_p, defaults.min_p)
        self._presence_penalty = sampling.presence_penalty
        self._frequency_penalty = sampling.frequency_penalty
        self._repetition_penalty = _given(sampling.repetition_penalty, defaults.repetition_penalty)
        self._seed = secrets.randbits(48) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator()
        self._counts = Counter(generated)
        self._prompt = set(prompt) if self._repetition_penalty != 1.0 else set()
        self._matcher = matcher
        self._min_tokens = 0 if matcher is not None else sampling.min_tokens
        self._end_ids = torch.tensor(sorted(end_ids), dtype=torch.long)
        self._bias: tuple[torch.Tensor, torch.Tensor] | None = None
        if sampling.logit_bias:
            self._bias = (
                torch.tensor([bias.token_id for bias in sampling.logit_bias], dtype=torch.long),
                torch.tensor([bias.bias for bias in sampling.logit_bias], dtype=torch.float32),
            )
        self.num_logprobs = sampling.logprobs
        """How many of the likeliest tokens come with each one; None: no log probabilities."""

    @property
    def is_plain_argmax(self) -> bool:
        """True where the largest logit wins, so that a whole batch can be decided in one operation."""
        return (
            self._temperature == 0.0
            and not self._has_penalties
            and self._bias is None
            and self._matcher is None
            and self._min_tokens == 0
        )

    @property
    def is_complete(self) -> bool:
        """True once the structure allows nothing more."""
        return self._matcher is not None and self._matcher.is_stopped()

    @property
    def _has_penalties(self) -> bool:
        return (
            self._presence_penalty != 0.0 or self._frequency_penalty != 0.0 or self._repetition_penalty != 1.0
        )

    def record(self, token_id: int) -> None:
        """Count a token that was drawn; penalties and the structure see it from now on."""
        if self._has_penalties:
            self._counts[token_id] += 1
        if self._matcher is not None:
            self._matcher.consume_token(token_id)

    def check(self) -> None:
        """Raise EngineError once the structure cannot be followed any further."""
        if self._matcher is not None and self._matcher.is_error():
            raise EngineError(f"the structure cannot be followed any further: {self._matcher.get_error()}")

    def draw(self, logits: torch.Tensor, index: int) -> int:
        """Return token number `index` of the answer. `logits`: float32 on the CPU, shape (vocab,); changed in place."""
        if self._matcher is not None:
            _apply_mask(logits, self._matcher.compute_bitmask())
        if index < self._min_tokens:
            logits[self._end_ids] = -torch.inf
        if self._bias is not None:
            token_ids, values = self._bias
            logits.index_add_(0, token_ids, values)
        if self._has_penalties:
            self._penalise(logits)
        if self._temperature == 0.0:
            return int(logits.argmax())
        logits = logits / self._temperature
        if self._min_p > 0.0:
            # A probability of min_p times the highest one is a logit this far below the highest.
            logits[logits < logits.max() + float(np.log(self._min_p))] = -torch.inf
        candidates: torch.Tensor | None = None
        if 0 < self._top_k < logits.shape[-1]:
            logits, candidates = logits.topk(self._top_k)
        probabilities = logits.softmax(-1)
        if self._top_p < 1.0:
            probabilities, order = probabilities.sort(descending=True)
            # Keep tokens until the mass before them reaches top_p; the first always stays.
            is_outside = probabilities.cumsum(-1) - probabilities > self._top_p
            probabilities = probabilities.masked_fill(is_outside, 0.0)
            candidates = order if candidates is None else candidates[order]
        self._generator.manual_seed((self._seed * 1_000_003 + index) & 0x7FFF_FFFF_FFFF_FFFF)
        drawn = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return drawn if candidates is None else int(candidates[drawn])

    def _penalise(self, logits: torch.Tensor) -> None:
        if self._repetition_penalty != 1.0:
            seen = torch.tensor(sorted(self._prompt | self._counts.keys()), dtype=torch.long)
            values = logits[seen]
            penalty = self._repetition_penalty
            logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
        if self._counts and (self._presence_penalty != 0.0 or self._frequency_penalty != 0.0):
            ids = torch.tensor(list(self._counts.keys()), dtype=torch.long)
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype)
            logits[ids] -= self._presence_penalty + self._frequency_penalty * counts


def score(logits: torch.Tensor, token_ids: list[int], num_top: int) -> list[ScoredToken]:
    """Return how likely each of `token_ids` is by the model alone, before any parameter of the request.

    `logits`: shape (len(token_ids), vocab). As OpenAI and vLLM have it, a token that was drawn need not be among the
    likeliest.
    """
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    if not num_top:
        return [ScoredToken(token_id, value) for token_id, value in zip(token_ids, own, strict=True)]
    values, ids = (tensor.tolist() for tensor in logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1))
    return [
        ScoredToken(token_id, value, list(zip(top_ids, top_values, strict=True)))
        for token_id, value, top_ids, top_values in zip(token_ids, own, ids, values, strict=True)
    ]


def _apply_mask(logits: torch.Tensor, mask: bytes) -> None:
    """Set all but the allowed tokens to -inf; `mask` has a bit for each token."""
    allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: logits.shape[-1]]
    logits[~torch.from_numpy(allowed.view(np.bool_))] = -torch.inf


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
