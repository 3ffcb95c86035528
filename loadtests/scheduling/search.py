"""The capacity of a policy: the highest rate on a grid of 2 % steps at which it keeps its attainment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

__all__ = ["STEP", "highest_step", "rate_at", "step_near"]

STEP: Final = 1.02
"""Rates are powers of this: the same rates for every policy, seed and machine."""


def rate_at(step: int) -> float:
    """Return the rate of a step of the grid, in runs per second."""
    return STEP**step


def step_near(rate: float) -> int:
    """Return the step whose rate is nearest."""
    return round(math.log(rate) / math.log(STEP))


def highest_step(passes: Callable[[int], bool], start: int, lowest: int, highest: int, stride: int) -> int:
    """Return a step that passes while the next one fails: gallop from `start` by `stride`, then bisect.

    Assumes that a policy which fails at a rate fails at higher ones; where that is not so, a crossing near `start` is
    found. `lowest` is taken to pass, `highest` to fail: the result is in lowest <= step < highest.
    """
    low = high = min(max(start, lowest + 1), highest - 1)
    if passes(low):
        while high < highest:
            low, high = high, min(high + stride, highest)
            if high == highest or not passes(high):
                break
            stride *= 2
    else:
        while low > lowest:
            low, high = max(low - stride, lowest), low
            if low == lowest or passes(low):
                break
            stride *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low
