"""Which dispatches a worker takes, and which requests a cancel stops: decisions only, no IO.

Rules: a scheduler whose fence is lower than one already seen is refused; an attempt is run once; a later attempt of a
request ends the earlier one, whose consumer no longer listens; a cancel that overtakes its dispatch is remembered.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from sage_wire.messages import Cancel, Dispatch

__all__ = ["Admission", "DispatchLedger", "Key", "Verdict"]

CANCEL_MEMORY_SECONDS: Final = 5.0
MAX_REMEMBERED: Final = 8192


class Key(NamedTuple):
    """One attempt of one request. A tuple, as it is a key: a dataclass is hashed ten times slower."""

    request_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.request_id}/{self.attempt}"


class Verdict(enum.Enum):
    """What to do with a dispatch."""

    START = "start"
    REPEATED = "repeated"  # this attempt, or a later one, was taken before: ignore it
    CANCELLED = "cancelled"  # the cancel came first
    STALE = "stale"  # from a scheduler that lost its lease
    DRAINING = "draining"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Admission:
    """A verdict, and an earlier attempt of the same request that must be stopped."""

    verdict: Verdict
    superseded: Key | None = None


class DispatchLedger:
    """Holds the running attempts and the recent past."""

    def __init__(self) -> None:
        self.is_draining = False
        self._running: dict[str, int] = {}
        self._seen: OrderedDict[str, int] = OrderedDict()
        self._cancelled: OrderedDict[str, tuple[float, int | None]] = OrderedDict()
        self._fences: dict[str, int] = {}

    def dispatched(self, dispatch: Dispatch, now: float, *, max_held: int) -> Admission:
        """Decide about `dispatch`; with START it counts as running until `ended`.

        `max_held` bounds what runs or waits inside the engine.
        """
        request_id, attempt = dispatch.request_id, dispatch.attempt
        if self._seen.get(request_id, -1) >= attempt:
            return Admission(Verdict.REPEATED)
        fence = self._fences.get(dispatch.pool, 0)
        if dispatch.fence < fence:
            return Admission(Verdict.STALE)
        self._fences[dispatch.pool] = dispatch.fence
        self._remember(request_id, attempt)
        running = self._running.get(request_id)
        superseded = None if running is None else Key(request_id, running)
        if self._was_cancelled(request_id, attempt, now):
            return Admission(Verdict.CANCELLED, superseded)
        if self.is_draining:
            return Admission(Verdict.DRAINING, superseded)
        if superseded is None and len(self._running) >= max_held:
            return Admission(Verdict.FULL)
        self._running[request_id] = attempt
        return Admission(Verdict.START, superseded)

    def led(self, pool: str, fence: int) -> None:
        """Refuse every dispatch for `pool` with a lower fence from now on."""
        self._fences[pool] = max(fence, self._fences.get(pool, 0))

    def cancelled(self, cancel: Cancel, now: float) -> Key | None:
        """Return the running attempt that `cancel` means; else remember it for a dispatch that is still behind."""
        running = self._running.get(cancel.request_id)
        if running is not None and cancel.attempt in (None, running):
            return Key(cancel.request_id, running)
        if cancel.attempt is None or self._seen.get(cancel.request_id, -1) < cancel.attempt:
            self._forget_old_cancels(now)
            self._cancelled[cancel.request_id] = (now + CANCEL_MEMORY_SECONDS, cancel.attempt)
            self._cancelled.move_to_end(cancel.request_id)
        return None

    def ended(self, key: Key) -> None:
        """Note that `key` no longer runs. Idempotent; an older attempt's end leaves a newer one alone."""
        if self._running.get(key.request_id) == key.attempt:
            del self._running[key.request_id]

    @property
    def num_running(self) -> int:
        """Requests that run or wait inside the engine."""
        return len(self._running)

    @property
    def running(self) -> list[Key]:
        """Each of them, for announcements."""
        return [Key(request_id, attempt) for request_id, attempt in self._running.items()]

    def _was_cancelled(self, request_id: str, attempt: int, now: float) -> bool:
        found = self._cancelled.get(request_id)
        if found is None:
            return False
        expires, cancelled_attempt = found
        return now < expires and cancelled_attempt in (None, attempt)

    def _forget_old_cancels(self, now: float) -> None:
        while self._cancelled:
            request_id, (expires, _) = next(iter(self._cancelled.items()))
            if now < expires and len(self._cancelled) < MAX_REMEMBERED:
                return
            del self._cancelled[request_id]

    def _remember(self, request_id: str, attempt: int) -> None:
        self._seen[request_id] = attempt
        self._seen.move_to_end(request_id)
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
