"""Time budgets. Durations cross hosts, absolute times never do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sage_core.clock import Clock, SystemClock

__all__ = ["Budget"]

_SYSTEM = SystemClock()


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of a caller's patience, counted on this process's own clock."""

    deadline: float
    clock: Clock = _SYSTEM

    @classmethod
    def of(cls, seconds: float, clock: Clock = _SYSTEM) -> Budget:
        """Start a budget of `seconds` now. Raises ValueError for NaN, infinite or negative values."""
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"budget is {seconds!r}; expected a finite number of seconds >= 0")
        return cls(clock.now() + seconds, clock)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.deadline - self.clock.now())

    @property
    def is_spent(self) -> bool:
        """True once nothing is left."""
        return self.clock.now() >= self.deadline

    def capped(self, seconds: float) -> Budget:
        """Return the tighter of this budget and `seconds` from now."""
        return Budget(min(self.deadline, self.clock.now() + seconds), self.clock)
