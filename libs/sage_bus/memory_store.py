"""Buckets and leases of the in-process bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sage_bus.bus import Entry
from sage_bus.checks import check_target
from sage_bus.feed import QueueFeed
from sage_core import BadRequest, Conflict

__all__ = ["MemoryBucket", "MemoryKeyValue", "MemoryLease", "acquire"]


@dataclass(eq=False, slots=True)
class MemoryBucket:
    """One bucket: entries, a growing revision, watchers."""

    name: str
    ttl: float | None = None
    max_bytes: int | None = None
    wall: Callable[[], float] = time.time
    revision: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    expiries: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    watchers: list[QueueFeed[Entry]] = field(default_factory=list)

    def write(self, key: str, value: bytes | None, ttl: float | None = None) -> int:
        """Store `value` (None deletes), tell the watchers, return the new revision."""
        self.revision += 1
        timer = self.expiries.pop(key, None)
        if timer is not None:
            timer.cancel()
        entry = Entry(key, value, self.revision, self.wall())
        self.entries.pop(key, None)
        if value is not None:
            self._make_room(len(value))
            self.entries[key] = entry
            lifetime = ttl if ttl is not None else self.ttl
            if lifetime is not None:
                loop = asyncio.get_running_loop()
                self.expiries[key] = loop.call_later(lifetime, self.write, key, None)
        for watcher in self.watchers:
            watcher.push(entry)
        return self.revision

    def _make_room(self, num_bytes: int) -> None:
        # Entries lie in the order of their revisions.
        held = sum(len(entry.value or b"") for entry in self.entries.values()) + num_bytes
        while self.max_bytes is not None and held > self.max_bytes and self.entries:
            held -= len(self.entries.pop(next(iter(self.entries))).value or b"")

    def compare_and_write(
        self, key: str, value: bytes | None, revision: int, ttl: float | None = None
    ) -> int:
        """Write where the key is still at `revision` (0: absent). Raises Conflict."""
        current = self.entries.get(key)
        found = 0 if current is None else current.revision
        if found != revision:
            raise Conflict(f"{self.name}/{key} is at revision {found}, not {revision}")
        return self.write(key, value, ttl)


class MemoryKeyValue:
    """One client's view of a bucket. See `KeyValue`."""

    def __init__(self, bucket: MemoryBucket, check_connected: Callable[[], None]) -> None:
        self._bucket = bucket
        self._check_connected = check_connected

    async def get(self, key: str) -> Entry | None:
        """See `KeyValue.get`."""
        self._check(key)
        return self._bucket.entries.get(key)

    async def put(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """See `KeyValue.put`."""
        self._check(key)
        return self._bucket.write(key, bytes(value), ttl)

    async def create(self, key: str, value: bytes) -> int:
        """See `KeyValue.create`."""
        self._check(key)
        return self._bucket.compare_and_write(key, bytes(value), 0)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """See `KeyValue.update`."""
        self._check(key)
        return self._bucket.compare_and_write(key, bytes(value), revision)

    async def delete(self, key: str) -> None:
        """See `KeyValue.delete`."""
        self._check(key)
        if key in self._bucket.entries:
            self._bucket.write(key, None)

    async def list(self) -> dict[str, Entry]:
        """See `KeyValue.list`."""
        self._check_connected()
        return dict(self._bucket.entries)

    def watch(self) -> QueueFeed[Entry]:
        """See `KeyValue.watch`."""
        watchers = self._bucket.watchers

        async def stop(_unread: object) -> None:
            watchers.remove(feed)

        feed: QueueFeed[Entry] = QueueFeed(stop)
        watchers.append(feed)
        for entry in self._bucket.entries.values():
            feed.push(entry)
        return feed

    def _check(self, key: str) -> None:
        self._check_connected()
        check_target(key)


class MemoryLease:
    """A held lease. See `Lease`."""

    def __init__(
        self, bucket: MemoryBucket, name: str, owner: str, ttl: float, fence: int, check: Callable[[], None]
    ) -> None:
        self._bucket = bucket
        self._name = name
        self._owner = owner
        self._ttl = ttl
        self._fence = fence
        self._revision = fence
        self._check_connected = check
        self._expires = asyncio.get_running_loop().time() + ttl
        self._is_lost = False

    @property
    def fence(self) -> int:
        """See `Lease.fence`."""
        return self._fence

    @property
    def is_held(self) -> bool:
        """See `Lease.is_held`."""
        return not self._is_lost and asyncio.get_running_loop().time() < self._expires

    async def renew(self) -> None:
        """See `Lease.renew`."""
        if not self.is_held:
            self._is_lost = True
            raise Conflict(f"lease {self._name} was lost: its time to live has passed")
        self._check_connected()
        start = asyncio.get_running_loop().time()
        try:
            self._revision = self._bucket.compare_and_write(
                self._name, self._owner.encode(), self._revision, self._ttl
            )
        except Conflict:
            self._is_lost = True
            raise Conflict(f"lease {self._name} was lost to another holder") from None
        self._expires = start + self._ttl

    async def release(self) -> None:
        """See `Lease.release`."""
        if self._is_lost:
            return
        self._is_lost = True
        current = self._bucket.entries.get(self._name)
        if current is not None and current.revision == self._revision:
            self._bucket.write(self._name, None)


def acquire(
    bucket: MemoryBucket, name: str, owner: str, ttl: float, check: Callable[[], None]
) -> MemoryLease:
    """Take the lease. Raises Conflict naming the holder, BadRequest for a time to live under a second."""
    check_target(name)
    if ttl < 1:
        raise BadRequest(f"lease time to live is {ttl:g} s; at least 1 s is needed")
    holder = bucket.entries.get(name)
    if holder is not None:
        raise Conflict(f"lease {name} is held by {(holder.value or b'').decode()}")
    fence = bucket.write(name, owner.encode(), ttl)
    return MemoryLease(bucket, name, owner, ttl, fence, check)
