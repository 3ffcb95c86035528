"""Reports to the schedulers: what became of dispatches in one turn of the event loop leaves as one message per pool.

Of what a turn brought for a request only the last report leaves, as it implies those before; and that a request has
started is told only where nothing else came of it for a moment.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from sage_bus import Bus
from sage_core import SageError
from sage_wire import encode, encode_list, subjects
from sage_wire.messages import Report, ReportEvent

__all__ = ["STARTED_SECONDS", "Reporter"]

STARTED_SECONDS: Final = 0.25
"""How long `started` waits for something that implies it. It confirms a dispatch, which nobody waits for; the consumer
is told by a frame of its own."""

log = structlog.get_logger(__name__)


class Reporter:
    """Used from one event loop. Reports of one request arrive in the order in which they were told."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._due: dict[tuple[str, int], Report] = {}
        self._started: dict[tuple[str, int], Report] = {}
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, report: Report) -> None:
        """Send `report` with this turn's others; `started` in a moment, unless another of the request comes before."""
        key = (report.request_id, report.attempt)
        if report.event is ReportEvent.STARTED:
            self._started[key] = report
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(STARTED_SECONDS, self._on_timer)
            return
        self._started.pop(key, None)
        self._due.pop(key, None)
        self._due[key] = report
        self._flush_soon()

    def flush(self) -> None:
        """Send everything, now."""
        self._due = self._started | self._due
        self._started = {}
        self._flush_due()

    def _flush_soon(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_due)

    def _on_timer(self) -> None:
        self._timer = None
        self.flush()

    def _flush_due(self) -> None:
        self._is_scheduled = False
        reports, self._due = self._due, {}
        by_pool: dict[str, list[bytes]] = {}
        for report in reports.values():
            by_pool.setdefault(report.pool, []).append(encode(report))
        for pool, encoded in by_pool.items():
            try:
                self._bus.publish(subjects.pool_report(pool), encode_list("reports", encoded))
            except SageError as refused:
                # The scheduler learns the same from the next announcement.
                log.warning("reports_not_sent", pool=pool, num_reports=len(encoded), error=refused.message)
