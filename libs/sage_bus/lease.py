"""Leases: a key that expires on the server, written under compare-and-set. The revision is the fencing token."""

from __future__ import annotations

import math
import time

from sage_bus.connection import Connection
from sage_bus.key_value import EXPECTED, TIME_TO_LIVE, Bucket, ensure_bucket, is_deletion
from sage_core import BadRequest, Conflict, SageError, new_id
from sage_wire import subjects

__all__ = ["NatsLease", "acquire_lease"]

_HOLDER = "Sage-Lease"
"""Tells one holding of a lease from another by the same owner."""


class NatsLease:
    """See `Lease`."""

    def __init__(self, bucket: Bucket, *, name: str, owner: str, holder: str, ttl: float) -> None:
        self._bucket = bucket
        self._name = name
        self._owner = owner.encode()
        self._holder = holder
        self._ttl = ttl
        self._fence = 0
        self._revision = 0
        self._expires = 0.0
        self._is_lost = False

    @property
    def fence(self) -> int:
        """See `Lease.fence`."""
        return self._fence

    @property
    def is_held(self) -> bool:
        """See `Lease.is_held`."""
        # Not the loop's time: uvloop's stands still for a whole turn, in the middle of which a process may be stopped.
        return not self._is_lost and time.monotonic() < self._expires

    async def take(self) -> None:
        """Acquire it. Raises Conflict naming the holder."""
        start = time.monotonic()
        try:
            self._revision = await self._bucket.write_absent(self._name, self._owner, self._headers())
        except Conflict:
            found = await self._bucket.read(self._name)
            holder = "another process"
            if found is not None and not is_deletion(found.headers):
                holder = found.payload.decode("utf-8", "replace")
            raise Conflict(f"lease {self._name} is held by {holder}") from None
        self._fence = self._revision
        # Counted from before the write: the server's time to live starts later, so it ends later.
        self._expires = start + self._ttl

    async def renew(self) -> None:
        """See `Lease.renew`."""
        if not self.is_held:
            self._is_lost = True
            raise Conflict(f"lease {self._name} was lost: its time to live has passed")
        start = time.monotonic()
        try:
            self._revision = await self._write(self._revision)
        except Conflict:
            # The answer to an earlier renewal may have been lost on the way: then it is still ours.
            found = await self._bucket.read(self._name)
            if found is None or found.headers.get(_HOLDER) != self._holder:
                self._is_lost = True
                raise Conflict(f"lease {self._name} was lost to another holder") from None
            self._revision = await self._write(found.sequence)
        self._expires = start + self._ttl

    async def release(self) -> None:
        """See `Lease.release`."""
        if self._is_lost:
            return
        self._is_lost = True
        try:
            await self._bucket.delete(self._name, {EXPECTED: str(self._revision)})
        except SageError:
            return  # somebody else has it, or the server does not answer: it expires by itself

    async def _write(self, expected: int) -> int:
        headers = {**self._headers(), EXPECTED: str(expected)}
        return await self._bucket.write(self._name, self._owner, headers)

    def _headers(self) -> dict[str, str]:
        # Whole seconds, rounded up: the server cuts fractions off, and would expire the key while we hold it.
        return {TIME_TO_LIVE: str(math.ceil(self._ttl)), _HOLDER: self._holder}


async def acquire_lease(connection: Connection, name: str, owner: str, ttl: float) -> NatsLease:
    """See `Bus.acquire_lease`."""
    if not math.isfinite(ttl) or ttl < 1:
        raise BadRequest(f"lease time to live is {ttl:g} s; at least 1 s is needed")
    bucket = await ensure_bucket(connection, subjects.LEASES_BUCKET, None)
    lease = NatsLease(bucket, name=name, owner=owner, holder=new_id(), ttl=ttl)
    await lease.take()
    return lease
