"""Does something grow? A line through what was sampled after the warm-up, and whether it rises for certain. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

__all__ = ["BOUNDS", "Bound", "Growth", "grown"]

SECONDS_PER_HOUR = 3600.0
CERTAINTY = 2.0
"""Standard errors that a rise must be away from the bound."""


@dataclass(frozen=True, slots=True)
class Bound:
    """How much one figure may grow. `least` is what counts as growth at all over the time that was sampled."""

    figure: str
    unit: str
    per_hour: float
    least: float


BOUNDS = (
    Bound("rss", "MiB", per_hour=24.0, least=4.0),
    Bound("fds", "descriptors", per_hour=10.0, least=4.0),
    Bound("threads", "threads", per_hour=4.0, least=6.0),
    Bound("tasks", "tasks", per_hour=10.0, least=4.0),
)


class Growth(msgspec.Struct, frozen=True):
    """The line through one figure of one process, per hour, with its standard error, and the verdict on it."""

    process: str
    figure: str
    unit: str
    first: float
    last: float
    per_hour: float
    error_per_hour: float
    bound_per_hour: float
    is_growing: bool


def grown(process: str, bound: Bound, seconds: Sequence[float], values: Sequence[float]) -> Growth:
    """Fit a line by least squares and judge it. At least three samples, in order of time.

    It is growing where the slope is above the bound by `CERTAINTY` standard errors, and the line rises by more than
    `bound.least` over the samples: so neither noise nor a few bytes in a short run fail it.
    """
    x, y = np.asarray(seconds, float), np.asarray(values, float)
    if len(x) < 3:
        raise ValueError(f"{len(x)} samples of {process}; at least 3 are needed for a line")
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residuals = y - y.mean() - slope * centred
    error = float(np.sqrt(residuals @ residuals / (len(x) - 2) / spread))
    certain = (slope - CERTAINTY * error) * SECONDS_PER_HOUR
    return Growth(
        process=process,
        figure=bound.figure,
        unit=bound.unit,
        first=float(y[0]),
        last=float(y[-1]),
        per_hour=slope * SECONDS_PER_HOUR,
        error_per_hour=error * SECONDS_PER_HOUR,
        bound_per_hour=bound.per_hour,
        is_growing=certain > bound.per_hour and slope * float(x[-1] - x[0]) > bound.least,
    )
