"""The injected clock. Everything with a deadline takes one, so that tests move time by hand."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["Clock", "FakeClock", "SystemClock"]


class Clock(Protocol):
    """A monotonic clock in seconds. Absolute values mean nothing outside this process."""

    def now(self) -> float:
        """Return seconds since an arbitrary, fixed point."""
        ...


class SystemClock:
    """`time.monotonic`, without a call of ours around it: every request asks for the time a dozen times."""

    now = staticmethod(time.monotonic)


class FakeClock:
    """A clock that moves only when told."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the time last set."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`; a negative value raises ValueError."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go back")
        self._now += seconds
