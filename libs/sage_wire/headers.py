"""Call headers: what travels beside every body. All values are text, as NATS requires."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sage_core import Budget, Clock, SystemClock

__all__ = ["BUDGET", "CALL_ID", "CANCEL", "ERROR", "TRACEPARENT", "CallHeaders"]

CALL_ID: Final = "Sage-Call"
BUDGET: Final = "Sage-Budget-Ms"
CANCEL: Final = "Sage-Cancel"
"""On the subject of an earlier call, with an empty body: its caller no longer waits for the call named here."""
ERROR: Final = "Sage-Error"
"""Present (`1`) on a reply whose body is a `WireError`."""
TRACEPARENT: Final = "traceparent"
MAX_BUDGET_MS: Final = 24 * 3600 * 1000

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CALL_ID = re.compile(r"[0-9a-z-]{1,64}")


@dataclass(frozen=True, slots=True)
class CallHeaders:
    """The headers of one call. `budget_ms` is what was left when it was sent; None means no limit was given."""

    call_id: str | None = None
    budget_ms: int | None = None
    traceparent: str | None = None

    def encode(self) -> dict[str, str]:
        """Return the NATS headers."""
        headers = {}
        if self.call_id is not None:
            headers[CALL_ID] = self.call_id
        if self.budget_ms is not None:
            headers[BUDGET] = str(max(0, self.budget_ms))
        if self.traceparent is not None:
            headers[TRACEPARENT] = self.traceparent
        return headers

    @classmethod
    def decode(cls, headers: Mapping[str, str]) -> CallHeaders:
        """Read headers from a peer; a malformed value counts as absent, and a budget is capped at one day."""
        call_id = headers.get(CALL_ID)
        traceparent = headers.get(TRACEPARENT)
        budget = headers.get(BUDGET, "")
        return cls(
            call_id=call_id if call_id and _CALL_ID.fullmatch(call_id) else None,
            budget_ms=min(int(budget), MAX_BUDGET_MS)
            if budget.isascii() and budget.isdigit() and len(budget) < 12
            else None,
            traceparent=traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None,
        )

    def budget(self, default: float, clock: Clock | None = None) -> Budget:
        """Start the receiver's budget: what was left at the sender, or `default` seconds."""
        seconds = default if self.budget_ms is None else self.budget_ms / 1000
        return Budget.of(seconds, clock or SystemClock())
