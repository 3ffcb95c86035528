"""The store on local disk: one SQLite file per collection, the recently used ones open."""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sage_core import BadRequest, Internal, LimitExceeded, NotFound, Unavailable
from sage_operator_worker import collection_file
from sage_operator_worker.collection import Collection
from sage_operator_worker.names import SUFFIX, check_collection_name, file_name
from sage_operator_worker.store import CollectionInfo, Query, Update
from sage_wire.messages import Chunk, Hit

__all__ = ["SqliteVectorStore", "StoreLimits"]

_MAX_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What the store holds at most. The last two bound open files and memory, not what can be stored."""

    max_collections: int = 10_000
    max_chunks: int = 1_000_000
    max_open: int = 64
    max_cached_bytes: int = 2 * 2**30


@dataclass(slots=True)
class _Open:
    collection: Collection
    num_users: int = 0


class SqliteVectorStore:
    """A `VectorStore` under one folder. Processes of one host may share it; hosts may not (SQLite's log)."""

    def __init__(self, folder: Path, limits: StoreLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or StoreLimits()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._is_closed = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def update(self, collection: str, update: Update) -> CollectionInfo:
        """See `VectorStore`."""
        _check_distinct(update.chunks)
        if update.chunks:
            with self._using(collection, may_create=True) as opened:
                return opened.update(update)
        try:
            with self._using(collection) as opened:
                return opened.update(update)
        except NotFound:
            return CollectionInfo(collection, "", 0, 0, 0)

    def retrieve(self, collection: str, query: Query) -> list[Hit]:
        """See `VectorStore`."""
        with self._using(collection) as opened:
            return opened.retrieve(query)

    def describe(self, collection: str) -> CollectionInfo:
        """See `VectorStore`."""
        with self._using(collection) as opened:
            return opened.describe()

    def collections(self) -> list[str]:
        """See `VectorStore`."""
        names = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with _reported(path.name):
                connection = collection_file.connect(path)
                try:
                    header = collection_file.read_header(connection)
                finally:
                    connection.close()
            if header is not None:
                names.append(header.name)
        return sorted(names)

    def close(self) -> None:
        """See `VectorStore`."""
        with self._idle:
            self._is_closed = True
            while any(entry.num_users for entry in self._open.values()):
                self._idle.wait()
            for entry in self._open.values():
                entry.collection.close()
            self._open.clear()

    @contextmanager
    def _using(self, name: str, *, may_create: bool = False) -> Iterator[Collection]:
        check_collection_name(name)
        with _reported(name):
            entry = self._acquire(name, may_create=may_create)
            try:
                yield entry.collection
            finally:
                self._release(entry)

    def _acquire(self, name: str, *, may_create: bool) -> _Open:
        path = self._folder / file_name(name)
        with self._lock:
            if self._is_closed:
                raise Unavailable("the vector store is closed")
            entry = self._open.get(name)
            if entry is None and path.exists():
                entry = self._admit(name, path)
            if entry is None and may_create:
                if sum(1 for _ in self._folder.glob(f"*{SUFFIX}")) >= self._limits.max_collections:
                    raise LimitExceeded(
                        f"there are {self._limits.max_collections} collections; no more are allowed"
                    )
                entry = self._admit(name, path)
            if entry is not None:
                entry.num_users += 1
                self._open.move_to_end(name)
        if entry is None:
            raise self._not_found(name)
        if not may_create and not entry.collection.exists():
            self._release(entry)
            raise self._not_found(name)
        return entry

    def _admit(self, name: str, path: Path) -> _Open:
        entry = _Open(Collection(path, name, max_chunks=self._limits.max_chunks))
        self._open[name] = entry
        return entry

    def _release(self, entry: _Open) -> None:
        with self._idle:
            entry.num_users -= 1
            self._close_least_used()
            self._idle.notify_all()

    def _close_least_used(self) -> None:
        """Close idle collections, least recently used first, until files and memory are within their limits."""
        num_bytes = sum(entry.collection.num_cached_bytes for entry in self._open.values())
        for name, entry in list(self._open.items()):
            if len(self._open) <= self._limits.max_open and num_bytes <= self._limits.max_cached_bytes:
                return
            if entry.num_users == 0:
                num_bytes -= entry.collection.num_cached_bytes
                entry.collection.close()
                del self._open[name]

    def _not_found(self, name: str) -> NotFound:
        names = self.collections()
        listed = ", ".join(repr(other) for other in names[:_MAX_NAMED]) or "none yet"
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        return NotFound(f"collection {name!r} does not exist; there are: {listed}{more}", param="collection")


def _check_distinct(chunks: Sequence[Chunk]) -> None:
    seen: set[tuple[str, int]] = set()
    for chunk in chunks:
        key = (chunk.source, chunk.position)
        if key in seen:
            raise BadRequest(
                f"source {chunk.source!r} has position {chunk.position} twice; expected each position once",
                param="chunks",
            )
        seen.add(key)


@contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn SQLite's errors into ours: busy or full may pass, a damaged file does not."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Unavailable(f"collection {name!r} cannot be used now: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Internal(f"the file of collection {name!r} is damaged: {error}") from error
