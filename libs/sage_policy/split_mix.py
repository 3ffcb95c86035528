"""SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), the twin of native/include/sage/policy/random.hpp."""

from __future__ import annotations

from typing import Final

__all__ = ["SplitMix64"]

_MASK: Final = (1 << 64) - 1


class SplitMix64:
    """Random numbers of policies: the same seed gives the same choices in both languages."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def uniform(self) -> float:
        """Return a number in [0, 1)."""
        return (self.next() >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """Return a whole number in [0, bound)."""
        return ((self.next() >> 32) * bound) >> 32
