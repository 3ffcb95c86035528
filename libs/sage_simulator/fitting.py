"""Coefficients of an engine's step time, fitted to measured steps; the formula is in native/include/sage/step_cost.hpp.

decode only (c = 0):  T = h + a0 + a1*N + a2*K
mixed       (c > 0):  T = h + m0 + m1*(c+N) + m2*K + m3*SUM c*(ctx + c/2) + m4*N
whole batches:        T = h + m0 + m1*tokens + m4*items
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from sage_policy import EngineProfile
from sage_simulator.least_squares import nonnegative_least_squares
from sage_simulator.traces.trace import Floats

__all__ = [
    "Deviation",
    "Fit",
    "Steps",
    "deviation",
    "draw_steps",
    "fit_batches",
    "fit_steps",
    "predicted_seconds",
]

_DECODE_SHARE: Final = 0.4
_FRESH_PROMPTS: Final = 0.75
_CONTEXTS: Final = (256.0, 4096.0)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Steps of an engine, float64 arrays of one length.

    `prefill`: prompt tokens computed, 0 where all sequences decode, in equal parts for `prompts` prompts, each on a
    `context` of earlier tokens; `decoding`: sequences with one token each, of `decode_context` tokens on average.
    """

    prefill: Floats
    prompts: Floats
    context: Floats
    decoding: Floats
    decode_context: Floats

    def __len__(self) -> int:
        return len(self.prefill)

    @property
    def resident(self) -> Floats:
        """Tokens in the KV cache before the step, of the sequences in it."""
        return self.prompts * self.context + self.decoding * self.decode_context

    @property
    def work(self) -> Floats:
        """Pairs of tokens that attention compares for the prompts."""
        return self.prefill * (self.context + self.prefill / np.maximum(1, self.prompts) / 2)

    def take(self, rows: np.ndarray) -> Steps:
        """Return the steps that `rows`, a mask or indices, picks."""
        return Steps(
            self.prefill[rows],
            self.prompts[rows],
            self.context[rows],
            self.decoding[rows],
            self.decode_context[rows],
        )


class Deviation(msgspec.Struct, frozen=True):
    """|predicted - measured| / measured over `count` steps; 0 where there are none."""

    count: int
    mean: float
    p90: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A profile, and how far it is from the steps that it was fitted to. For whole batches `decode` is empty."""

    profile: EngineProfile
    decode: Deviation
    mixed: Deviation


def draw_steps(limits: EngineProfile, count: int, seed: int) -> Steps:
    """Return `count` steps as an engine within `limits` meets them, for profiles that can be asked for any step.

    Two fifths decode only. Sequences are uniform in 0..max_sequences, their mean context log-uniform in 256..4096
    tokens, prompt chunks uniform in what the step leaves them; three chunks in four begin their prompt, the others
    stand on up to 2048 tokens of it. Steps that do not fit the KV cache are drawn again.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, float, float, float, float]] = []
    while len(rows) < count:
        decodes = rng.random() < _DECODE_SHARE
        decoding = int(rng.integers(1 if decodes else 0, limits.max_sequences + 1))
        decode_context = float(np.exp(rng.uniform(*np.log(_CONTEXTS)))) if decoding else 0.0
        room = limits.max_step_tokens - decoding
        prefill = context = 0.0
        if not decodes:
            prefill = float(rng.integers(1, room + 1)) if room > 0 else 0.0
            context = 0.0 if rng.random() < _FRESH_PROMPTS else float(rng.uniform(0, limits.max_step_tokens))
        resident = decoding * decode_context + context + prefill
        if prefill + decoding > 0 and resident <= limits.kv_tokens:
            rows.append((prefill, float(prefill > 0), context, float(decoding), decode_context))
    return Steps(*np.array(rows).T)


def fit_steps(steps: Steps, seconds: Floats, limits: EngineProfile) -> Fit:
    """Return the profile with the least relative squares; all but the coefficients is taken from `limits`.

    Where no measured step has prompts and decoding sequences together, what those cost each other is not known: their
    KV cache is then taken to cost what it costs in a decode step (m2 = a2). Raises ValueError for an empty regime.
    """
    mixed = steps.prefill > 0
    if not mixed.any() or mixed.all():
        raise ValueError("steps with and without prompts are needed")
    a0, a1, a2 = _relative_fit(_decode_columns(steps.take(~mixed)), seconds[~mixed])
    m0, m1, m2, m3, m4 = _relative_fit(_mixed_columns(steps.take(mixed)), seconds[mixed])
    if not steps.decoding[mixed].any():
        m2 = a2
    profile = msgspec.structs.replace(
        limits, a0=a0, a1=a1, a2=a2, m0=m0, m1=m1, m2=m2, m3=m3, m4=m4, host=0.0
    )
    predicted = predicted_seconds(profile, steps)
    return Fit(
        profile, deviation(predicted[~mixed], seconds[~mixed]), deviation(predicted[mixed], seconds[mixed])
    )


def fit_batches(tokens: Floats, items: Floats, seconds: Floats, limits: EngineProfile) -> Fit:
    """Return the profile of an executor of whole batches: `tokens` with padding, `items` inputs in each."""
    m0, m1, m4 = _relative_fit(np.column_stack([np.ones(len(tokens)), tokens, items]), seconds)
    profile = msgspec.structs.replace(
        limits, a0=0.0, a1=0.0, a2=0.0, m0=m0, m1=m1, m2=0.0, m3=0.0, m4=m4, host=0.0
    )
    empty = np.zeros(0)
    return Fit(profile, deviation(empty, empty), deviation(m0 + m1 * tokens + m4 * items, seconds))


def predicted_seconds(profile: EngineProfile, steps: Steps) -> Floats:
    """Return what `profile` says of each step."""
    decode = _decode_columns(steps) @ np.array([profile.a0, profile.a1, profile.a2])
    mixed = _mixed_columns(steps) @ np.array([profile.m0, profile.m1, profile.m2, profile.m3, profile.m4])
    seconds: Floats = profile.host + np.where(steps.prefill > 0, mixed, decode)
    return seconds


def deviation(predicted: Floats, measured: Floats) -> Deviation:
    """Return how far `predicted` is from `measured`."""
    if not len(measured):
        return Deviation(0, 0.0, 0.0)
    errors = np.abs(predicted / measured - 1)
    return Deviation(len(errors), float(errors.mean()), float(np.percentile(errors, 90)))


def _relative_fit(columns: Floats, seconds: Floats) -> list[float]:
    weighted = columns / seconds[:, np.newaxis]
    return [float(value) for value in nonnegative_least_squares(weighted, np.ones(len(seconds)))]


def _decode_columns(steps: Steps) -> Floats:
    return np.column_stack([np.ones(len(steps)), steps.decoding, steps.resident])


def _mixed_columns(steps: Steps) -> Floats:
    ones, tokens = np.ones(len(steps)), steps.prefill + steps.decoding
    return np.column_stack([ones, tokens, steps.resident, steps.work, steps.decoding])
