"""Buckets over JetStream: values with revisions, compare-and-set, expiry that is told to watchers.

nats-py's key-value code is not used: its `update` drops the time to live, its `create` and `get` misread
expired keys, and its watch takes 20 s to notice a restart and never learns what was deleted meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from sage_bus.bus import NO_HEADERS, Entry
from sage_bus.checks import check_target
from sage_bus.connection import Connection
from sage_bus.jetstream import (
    WRONG_LAST_SEQUENCE,
    StoredMessage,
    ensure_stream,
    last_message,
    list_messages,
    store,
)
from sage_bus.stream_plan import bucket_plan
from sage_bus.watch import BucketWatch
from sage_core import BusUnavailable, Conflict, Overloaded
from sage_wire import subjects

__all__ = ["Bucket", "NatsKeyValue", "open_bucket"]

EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
TIME_TO_LIVE: Final = "Nats-TTL"
_OPERATION: Final = "KV-Operation"
_MARKER: Final = "Nats-Marker-Reason"
_DELETION_SECONDS: Final = 3600
"""How long a deletion is remembered, so that compare-and-set and watchers see it."""


def is_deletion(headers: Mapping[str, str]) -> bool:
    """Tell whether a stored message stands for a deleted or expired key."""
    return headers.get(_OPERATION) in ("DEL", "PURGE") or _MARKER in headers


class Bucket:
    """One bucket's stream: reading, and writing under conditions. Leases use it too."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self.stream = subjects.bucket_stream(name)
        self.prefix = f"{subjects.bucket_keys(name)}."

    def subject(self, key: str) -> bytes:
        """Where `key` is written. Raises BusError for a key outside the subject alphabet."""
        check_target(key)
        return f"{self.prefix}{key}".encode("ascii")

    async def read(self, key: str) -> StoredMessage | None:
        """Return the last message of `key`, which may be a deletion."""
        return await last_message(self.connection, self.stream, self.subject(key).decode("ascii"))

    async def write(self, key: str, value: bytes, headers: Mapping[str, str] = NO_HEADERS) -> int:
        """Write; return the revision. Raises Conflict where the expected revision in `headers` is not there."""
        # A compare-and-set that is sent twice conflicts with itself.
        answer = await store(
            self.connection, self.subject(key), value, headers, is_repeatable=EXPECTED not in headers
        )
        if answer.error is None:
            return answer.seq
        if answer.error.err_code == WRONG_LAST_SEQUENCE:
            raise Conflict(f"{self.name}/{key}: {answer.error.description}")
        if answer.error.is_full:
            raise Overloaded(f"bucket {self.name} is full: {answer.error.description}", retry_after=1.0)
        raise BusUnavailable(f"bucket {self.name}: {answer.error.description}")

    async def write_absent(self, key: str, value: bytes, headers: Mapping[str, str] = NO_HEADERS) -> int:
        """Write where the key is absent, deleted or expired. Raises Conflict where it lives."""
        try:
            return await self.write(key, value, {**headers, EXPECTED: "0"})
        except Conflict:
            found = await self.read(key)
            if found is not None and not is_deletion(found.headers):
                raise
            expected = found.sequence if found is not None else 0
            return await self.write(key, value, {**headers, EXPECTED: str(expected)})

    async def delete(self, key: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Leave a deletion in place of the value."""
        await self.write(key, b"", {**headers, _OPERATION: "DEL", TIME_TO_LIVE: str(_DELETION_SECONDS)})

    def entry(self, message: StoredMessage) -> Entry:
        """Return a stored message as an entry; the value of a deletion is None."""
        value = None if is_deletion(message.headers) else message.payload
        return Entry(message.subject.removeprefix(self.prefix), value, message.sequence, message.stored_at)

    async def list_all(self) -> dict[str, Entry]:
        """Return the last entry of every key, deletions included."""
        stored = await list_messages(self.connection, self.stream, f"{self.prefix}>")
        return {entry.key: entry for entry in map(self.entry, stored)}


class NatsKeyValue:
    """See `KeyValue`."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def get(self, key: str) -> Entry | None:
        """See `KeyValue.get`."""
        found = await self._bucket.read(key)
        return None if found is None or is_deletion(found.headers) else self._bucket.entry(found)

    async def put(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """See `KeyValue.put`."""
        headers = NO_HEADERS if ttl is None else {TIME_TO_LIVE: str(math.ceil(ttl))}
        return await self._bucket.write(key, value, headers)

    async def create(self, key: str, value: bytes) -> int:
        """See `KeyValue.create`."""
        return await self._bucket.write_absent(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """See `KeyValue.update`."""
        return await self._bucket.write(key, value, {EXPECTED: str(revision)})

    async def delete(self, key: str) -> None:
        """See `KeyValue.delete`."""
        if await self.get(key) is not None:
            await self._bucket.delete(key)

    async def list(self) -> dict[str, Entry]:
        """See `KeyValue.list`."""
        entries = await self._bucket.list_all()
        return {key: entry for key, entry in entries.items() if entry.value is not None}

    def watch(self) -> BucketWatch:
        """See `KeyValue.watch`."""
        bucket = self._bucket
        return BucketWatch(
            bucket.connection,
            stream=bucket.stream,
            changes=subjects.bucket_changes(bucket.name),
            list_all=bucket.list_all,
            is_deletion=is_deletion,
        )


async def open_bucket(
    connection: Connection, name: str, ttl: float | None, *, is_durable: bool, max_bytes: int | None
) -> NatsKeyValue:
    """Open a bucket, creating it where it is absent. Raises ConfigurationError, BadRequest, BusUnavailable."""
    bucket = await ensure_bucket(connection, name, ttl, is_durable=is_durable, max_bytes=max_bytes)
    return NatsKeyValue(bucket)


async def ensure_bucket(
    connection: Connection,
    name: str,
    ttl: float | None,
    *,
    is_durable: bool = True,
    max_bytes: int | None = None,
) -> Bucket:
    """Like `open_bucket`, for the parts of this package."""
    plan = bucket_plan(name, ttl, is_durable=is_durable, max_bytes=max_bytes)
    await ensure_stream(connection, plan)
    return Bucket(connection, name)
