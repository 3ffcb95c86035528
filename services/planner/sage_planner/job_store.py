"""The state of durable jobs in their bucket, changed by compare-and-set alone."""

from __future__ import annotations

from sage_bus import KeyValue
from sage_core import BadRequest
from sage_telemetry import get_logger
from sage_wire import decode, encode
from sage_wire.messages import JobState

__all__ = ["JobStore"]

ABSENT = 0
log = get_logger()


class JobStore:
    """Reads and writes `JobState` by job id."""

    def __init__(self, bucket: KeyValue) -> None:
        self._bucket = bucket

    async def read(self, job_id: str) -> tuple[JobState | None, int]:
        """Return the state and its revision; (None, 0) where there is none. An unreadable state counts as none."""
        entry = await self._bucket.get(job_id)
        if entry is None or entry.value is None:
            return None, ABSENT
        try:
            return decode(JobState, entry.value), entry.revision
        except BadRequest as error:
            log.warning("job_state_malformed", job_id=job_id, error=error.message)
            return None, entry.revision

    async def write(self, state: JobState, revision: int) -> int:
        """Store `state` if the key is still at `revision` (0: absent). Raises Conflict where it is not."""
        payload = encode(state)
        if revision == ABSENT:
            return await self._bucket.create(state.job_id, payload)
        return await self._bucket.update(state.job_id, payload, revision)
