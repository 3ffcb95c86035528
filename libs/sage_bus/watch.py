"""Watching a bucket: list it, follow its numbered changes, list again after any gap and yield the difference."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from sage_bus.bus import BusEvent, Entry
from sage_bus.connection import Connection
from sage_bus.feed import QueueFeed
from sage_bus.header_block import parse_headers
from sage_bus.jetstream import last_sequence
from sage_core import BusUnavailable, Internal, SageError

__all__ = ["BucketWatch", "WatchState"]

log = structlog.get_logger("sage_bus")

_SUBSCRIBE_SECONDS = 10.0
_RECHECK_SECONDS = 15.0
_RETRY_SECONDS = 0.25


class WatchState:
    """What a watcher has been told, and what it must be told next. Pure.

    Changes of a bucket carry consecutive sequence numbers; a hole means that something was missed.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._last: int | None = None
        self._early: list[Entry] = []
        self._newer: dict[str, int] = {}

    @property
    def is_listed(self) -> bool:
        """False until a list has been taken in, and again after a gap."""
        return self._last is not None

    def change(self, entry: Entry) -> list[Entry]:
        """Take in one change; return what to tell. After a gap nothing, until the next `listed`."""
        if self._last is None:
            self._early.append(entry)
            return []
        if entry.revision <= self._last:
            return []
        if entry.revision != self._last + 1:
            self.lose()
            self._early.append(entry)
            return []
        self._last = entry.revision
        return self._tell(entry) if entry.revision > self._newer.get(entry.key, 0) else []

    def lose(self) -> None:
        """Changes may have been missed: a list is needed."""
        self._last = None
        self._early.clear()

    def listed(self, entries: Mapping[str, Entry], last: int) -> list[Entry]:
        """Take in the whole bucket, read when its newest sequence was at least `last`; return what to tell."""
        told = []
        live = {key for key, entry in entries.items() if entry.value is not None}
        for key in [key for key in self._known if key not in live]:
            found = entries.get(key)
            revision = found.revision if found is not None else max(last, self._known[key])
            told.extend(self._tell(Entry(key, None, revision)))
        for entry in sorted(entries.values(), key=lambda entry: entry.revision):
            if entry.revision > self._known.get(entry.key, 0):
                told.extend(self._tell(entry))
        # The list was not read at one instant: what it has beyond `last` will come again as changes.
        self._last = last
        self._newer = {entry.key: entry.revision for entry in entries.values() if entry.revision > last}
        early, self._early = self._early, []
        for entry in early:
            told.extend(self.change(entry))
        return told

    def is_behind(self, last: int) -> bool:
        """Tell whether the bucket's newest sequence says that a change is missing."""
        return self._last is not None and last > self._last

    def _tell(self, entry: Entry) -> list[Entry]:
        if entry.value is None:
            return [entry] if self._known.pop(entry.key, None) is not None else []
        self._known[entry.key] = entry.revision
        return [entry]


class BucketWatch:
    """See `KeyValue.watch`. Nothing is asked of the server before the first read."""

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        changes: str,
        list_all: Callable[[], Awaitable[dict[str, Entry]]],
        is_deletion: Callable[[Mapping[str, str]], bool],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._changes = changes
        self._list_all = list_all
        self._is_deletion = is_deletion
        self._state = WatchState()
        self._feed: QueueFeed[Entry] = QueueFeed()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __aiter__(self) -> BucketWatch:
        return self

    async def __anext__(self) -> Entry:
        if self._task is None and not self._feed.is_closed:
            self._task = asyncio.create_task(self._run(), name=f"bus-watch-{self._stream}")
            self._task.add_done_callback(self._on_task_done)
        return await self._feed.__anext__()

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        await self._feed.aclose()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        connection = self._connection
        sid = None
        connection.add_listener(self._on_event)
        try:
            sid = await connection.subscribe(
                f"{self._changes}.>", "", self._on_change, timeout=_SUBSCRIBE_SECONDS
            )
            while True:
                self._wake.clear()
                await self._catch_up()
                try:
                    async with asyncio.timeout(_RECHECK_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        except SageError as error:
            self._feed.end(error)
        finally:
            connection.remove_listener(self._on_event)
            if sid is not None:
                connection.unsubscribe(sid)

    async def _catch_up(self) -> None:
        """List until the state is whole. Where the server does not answer, try again."""
        while True:
            try:
                # The sequence is read first: the list is then at least as new as it says.
                last = await last_sequence(self._connection, self._stream)
                if self._state.is_listed and not self._state.is_behind(last):
                    return
                self._state.lose()
                entries = await self._list_all()
            except BusUnavailable as error:
                if self._connection.is_closed:
                    raise
                log.info("bus_watch_delayed", stream=self._stream, reason=error.message)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._push(self._state.listed(entries, last))

    def _on_change(self, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        del reply
        headers = parse_headers(block)
        key = subject.decode("ascii", "replace").removeprefix(f"{self._changes}.")
        value = None if self._is_deletion(headers) else payload
        was_listed = self._state.is_listed
        self._push(self._state.change(Entry(key, value, int(headers["Nats-Sequence"]))))
        if was_listed and not self._state.is_listed:
            self._wake.set()

    def _on_event(self, event: BusEvent, detail: str) -> None:
        del detail
        if event is BusEvent.RECONNECTED:
            self._state.lose()
            self._wake.set()
        elif event is BusEvent.CLOSED:
            self._feed.end(BusUnavailable("the connection ended while a bucket was watched"))

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("bus_watch_failed", stream=self._stream, exc_info=task.exception())
            self._feed.end(Internal(f"the watch of {self._stream} failed: {task.exception()!r}"))

    def _push(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._feed.push(entry)
