"""The formulas of InstanceState::predict and peak_memory, and of the predicted placement score, as they are written."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

LOAD_SECONDS = 5.0  # time constant of the prefill load
NAMES = ("a0", "a1", "a2", "m0", "m1", "m2", "m3", "m4", "host")


@dataclass(frozen=True)
class Counts:
    """P pending prompt tokens and their work, N decoding, K resident, R reserved, u prefill load."""

    pending: float
    pending_work: float
    decoding: float
    resident: float
    reserved: float
    prefill_load: float


def predict(
    cost: list[float],
    counts: Counts,
    *,
    max_step_tokens: int,
    capacity: float,
    expected_of_flights: list[float],
    prompt: float,
    cached: float,
    expected: float,
) -> tuple[float, float, float]:
    a0, a1, a2, m0, m1, m2, m3, m4, host = cost
    pending, decoding, resident = counts.pending, counts.decoding, counts.resident
    new = prompt - cached
    room = max(1.0, max_step_tokens - decoding)
    steps = ceil((pending + new) / room)
    if pending > 0:
        current = host + m0 + m1 * (min(room, pending) + decoding) + m2 * resident + m4 * decoding
    elif decoding > 0:
        current = host + a0 + a1 * decoding + a2 * resident
    else:
        current = 0.0
    load = min(0.8, counts.prefill_load + new * m1 / LOAD_SECONDS)
    tpot = (host + a0 + a1 * (decoding + 1) + a2 * (resident + prompt)) / (1 - load)
    short = counts.reserved + prompt + expected - capacity
    wait = 0.0
    if short > 0 and decoding > 0:
        remaining = sum(max(8.0, length / 2) for length in expected_of_flights) / len(expected_of_flights)
        wait = short / max(1.0, resident) * remaining * tpot
    work = counts.pending_work + new * (cached + new / 2)
    per_step = host + m0 + (m1 + m4) * decoding + m2 * resident
    return current / 2 + steps * per_step + m1 * (pending + new) + m3 * work + wait, tpot, wait


def peak_memory(held_and_remaining: list[tuple[float, float]]) -> float:
    """When one ends, it and those that go on hold what they have plus as many tokens as it still had to come."""
    return max(
        sum(held + end for held, remaining in held_and_remaining if remaining >= end)
        for _, end in held_and_remaining
    )


def lateness(share: float, *, knee: float, weight: float) -> float:
    return share / 2 + weight * max(0.0, share - knee)


def score(
    ttft: float,
    tpot: float,
    expected: float,
    *,
    waited: float,
    targets: tuple[float, float, float],
    knee: float,
    weight: float,
    num_running: int,
    slots: int,
) -> float:
    """Of an instance where nobody would be harmed."""
    e2e = ttft + tpot * max(0.0, expected - 1)
    shares = [(waited + ttft) / targets[0], tpot / targets[1], (waited + e2e) / targets[2]]
    late = sum(
        lateness(share, knee=knee, weight=weight)
        for share, target in zip(shares, targets, strict=True)
        if target != inf
    )
    return late + 0.01 * e2e + 1e-3 * num_running / slots
