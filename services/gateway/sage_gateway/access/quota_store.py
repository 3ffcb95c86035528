"""Where quotas are kept: one entry per key in a bucket that all gateways share, and the clock they share with it."""

from __future__ import annotations

from typing import Final

import msgspec

from sage_bus import Bus, KeyValue
from sage_core import BusUnavailable, Clock, Conflict, new_id
from sage_gateway.access.quota import EMPTY, QuotaState, decode_state, encode_state
from sage_telemetry import get_logger
from sage_wire import subjects
from sage_wire.stores import QUOTAS

__all__ = ["QuotaStore", "Versioned"]

_CLOCK_SECONDS: Final = 60.0
"""How long a reading of the broker's clock is used. Quartz drifts by about 6 ms in a minute at the worst."""

log = get_logger()


class Versioned(msgspec.Struct, frozen=True):
    """A state and the revision that it was read or written at; 0: the entry was absent."""

    state: QuotaState
    revision: int


class QuotaStore:
    """The bucket as one gateway sees it. Opened at first use, and again after it was lost with its server.

    The bucket is in the server's memory: a write costs no disk, and a restart of the server forgets at most the last
    minute. Hosts' clocks are not trusted: `now` is the broker's, read from the time at which it stored an entry of
    ours, so it is right within half of that round trip.
    """

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self.gateway = new_id(length=12)
        self._bus = bus
        self._clock = clock
        self._bucket: KeyValue | None = None
        self._offset = 0.0
        self._read_clock_at = float("-inf")

    def now(self) -> float:
        """Return the broker's time in Unix seconds. Only after `open`."""
        return self._clock.now() + self._offset

    async def open(self) -> None:
        """Make sure that the bucket is there and the clock is known. Raises what the bus raises."""
        if self._bucket is None:
            self._bucket = await self._bus.key_value(
                QUOTAS.name, ttl=QUOTAS.ttl, is_durable=QUOTAS.is_durable
            )
            self._read_clock_at = float("-inf")
        if self._clock.now() - self._read_clock_at >= _CLOCK_SECONDS:
            await self._read_clock(self._bucket)

    def forget(self) -> None:
        """Open the bucket anew at next use: it failed, perhaps because its server started again without it."""
        self._bucket = None

    async def read(self, key_name: str) -> Versioned:
        """Return what is stored for a key. Raises what the bus raises."""
        entry = await self._opened().get(subjects.quota_entry(key_name))
        if entry is None or entry.value is None:
            return Versioned(EMPTY, 0)
        try:
            return Versioned(decode_state(entry.value), entry.revision)
        except msgspec.DecodeError as error:
            # Written by another program, or a later version: it is replaced, or no request of this key ever passes.
            log.error("quota_entry_unreadable", key=key_name, error=str(error))
            return Versioned(EMPTY, entry.revision)

    async def write(self, key_name: str, state: QuotaState, revision: int) -> Versioned:
        """Write where the entry is still at `revision`. Raises Conflict where it is not, and what the bus raises."""
        bucket, key = self._opened(), subjects.quota_entry(key_name)
        payload = encode_state(state)
        if revision:
            return Versioned(state, await bucket.update(key, payload, revision))
        return Versioned(state, await bucket.create(key, payload))

    async def _read_clock(self, bucket: KeyValue) -> None:
        key = subjects.quota_clock(self.gateway)
        sent = self._clock.now()
        revision = await bucket.put(key, b"")
        answered = self._clock.now()
        entry = await bucket.get(key)
        if entry is None or entry.revision != revision:
            raise Conflict(f"{subjects.QUOTAS_BUCKET}/{key} was written by another gateway")
        self._offset = entry.stored_at - (sent + answered) / 2
        self._read_clock_at = answered

    def _opened(self) -> KeyValue:
        if self._bucket is None:
            raise BusUnavailable("the quota bucket is not open")
        return self._bucket
