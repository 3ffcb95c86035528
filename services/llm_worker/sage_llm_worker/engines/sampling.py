"""Choosing the next token from logits, one sequence at a time. Needs torch."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass

import torch

from sage_core import BadRequest
from sage_wire.messages import Sampling

__all__ = ["Sampler", "SamplingDefaults"]


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's authors recommend (generation_config.json), used where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class Sampler:
    """Draws the tokens of one sequence.

    Token `i` is drawn with a generator seeded by (seed, i), so an answer that is resumed with the same seed after
    `i` tokens continues as if it had never stopped.
    """

    __slots__ = (
        "_counts",
        "_frequency_penalty",
        "_generator",
        "_presence_penalty",
        "_prompt",
        "_repetition_penalty",
        "_seed",
        "_temperature",
        "_top_k",
        "_top_p",
    )

    def __init__(
        self, sampling: Sampling, defaults: SamplingDefaults, prompt: list[int], generated: list[int]
    ) -> None:
        """`generated`: tokens of earlier attempts. Raises BadRequest for parameters out of range."""
        self._temperature = _in_range("temperature", sampling.temperature, defaults.temperature, 0.0, 100.0)
        self._top_p = _in_range("top_p", sampling.top_p, defaults.top_p, 0.0, 1.0)
        self._top_k = defaults.top_k
        self._presence_penalty = _in_range("presence_penalty", sampling.presence_penalty, 0.0, -2.0, 2.0)
        self._frequency_penalty = _in_range("frequency_penalty", sampling.frequency_penalty, 0.0, -2.0, 2.0)
        self._repetition_penalty = defaults.repetition_penalty
        self._seed = secrets.randbits(48) if sampling.seed is None else sampling.seed
        self._generator = torch.Generator()
        self._counts = Counter(generated)
        self._prompt = set(prompt) if self._repetition_penalty != 1.0 else set()

    @property
    def is_plain_argmax(self) -> bool:
        """True where the largest logit wins, so that a whole batch can be decided in one operation."""
        return self._temperature == 0.0 and not self._has_penalties

    @property
    def _has_penalties(self) -> bool:
        return (
            self._presence_penalty != 0.0 or self._frequency_penalty != 0.0 or self._repetition_penalty != 1.0
        )

    def record(self, token_id: int) -> None:
        """Count a token that was drawn; penalties see it from now on."""
        if self._has_penalties:
            self._counts[token_id] += 1

    def draw(self, logits: torch.Tensor, index: int) -> int:
        """Return token number `index` of the answer. `logits`: float32 on the CPU, shape (vocab,); changed in place."""
        if self._has_penalties:
            self._penalise(logits)
        if self._temperature == 0.0:
            return int(logits.argmax())
        logits = logits / self._temperature
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


def _in_range(name: str, value: float | None, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    if not low <= value <= high:
        raise BadRequest(f"{name} is {value}; expected {low:g} to {high:g}", param=name)
    return value
