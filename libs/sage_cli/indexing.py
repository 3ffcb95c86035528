"""Index documents as durable jobs: read, batch, submit, wait; remember what is done, so a second run is short."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sage_cli.connection import open_bus
from sage_cli.document_parts import MAX_PART_CHARS, Part, part_sources, parts_of
from sage_cli.documents import DocumentReader
from sage_cli.manifest import Manifest
from sage_cli.pipeline_check import require_pipeline
from sage_cli.runtime import Instance
from sage_client import JobClient
from sage_core import BadRequest, DeadlineExceeded, LimitExceeded, Paths, SageError, new_id
from sage_wire.messages import Document, JobState, JobStatus, RunPipeline, SubmitJob

__all__ = ["IndexRun", "IndexSummary", "batches", "run_index"]

_MAX_BATCH_DOCUMENTS = 16
_MAX_BATCH_CHARS = MAX_PART_CHARS
"""A batch stays well under what one message carries, and a lost one is quickly repeated."""
_MAX_REMOVED = 1000
_MAX_FAILURES_IN_A_ROW = 3
_LOOK_INTERVAL = 2.0
"""How often a job that has not ended is asked whether an attempt failed, in seconds."""
_MAX_JOBS = 4
_JOB_BUDGET = 600.0
_PLAIN_INTERVAL = 5.0


class IndexSummary(msgspec.Struct, frozen=True):
    """What a run of `sage index` did. `skipped` counts files by reason, `num_removed` documents that are gone.

    `is_stopped`: the same failure came again and again, so the rest was not tried.
    """

    collection: str
    num_documents: int
    num_indexed: int
    num_unchanged: int
    num_failed: int
    skipped: dict[str, int]
    seconds: float
    documents_per_s: float
    first_error: str | None = None
    num_removed: int = 0
    is_stopped: bool = False

    def text(self) -> str:
        """Return the summary as a sentence per fact."""
        lines = [
            f"{self.num_documents} documents in collection {self.collection!r}: {self.num_indexed} indexed "
            f"({self.documents_per_s:.1f}/s, {self.seconds:.1f} s), {self.num_unchanged} unchanged, "
            f"{self.num_removed} removed, {self.num_failed} failed"
        ]
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            lines.append(f"left out: {reasons}")
        return "\n".join(lines)

    def problem(self) -> str | None:
        """Return what went wrong and what to do; None where nothing did."""
        if self.is_stopped:
            return (
                f"stopped after {_MAX_FAILURES_IN_A_ROW} failures in a row, {self.first_error}; remove the cause "
                "and run the same command again: what is indexed already stays and is not done again"
            )
        if self.num_failed:
            return f"{self.num_failed} documents could not be indexed: {self.first_error}"
        return None


async def run_index(
    instance: Instance,
    places: list[Path],
    *,
    collection: str,
    pipeline: str,
    max_bytes: int,
    is_forced: bool,
    console: Console,
    replaced: Sequence[Path] = (),
) -> IndexSummary:
    """Index everything under `places`, and remove what an earlier run indexed from there that is gone.

    What earlier runs indexed from a `replaced` folder leaves the collection too. Documents that fail are counted;
    those after them are still indexed, unless the same failure comes again and again. Fails with status 2 for a
    pipeline that does not exist or takes no documents.
    """
    manifest = Manifest.load(Paths.for_instance(instance.name).data, collection)
    async with open_bus(instance) as bus:
        await require_pipeline(bus, pipeline)
        if is_forced:
            manifest.forget_all()
        run = IndexRun(JobClient(bus), manifest, DocumentReader(max_bytes), collection, pipeline, console)
        try:
            await run.index(places, replaced)
        finally:
            manifest.save()
    return run.summary()


def batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    """Yield parts in groups bounded in number and size; a part over the size stands alone."""
    batch: list[Part] = []
    num_chars = 0
    for each in parts:
        length = len(each.document.text)
        if batch and (len(batch) >= _MAX_BATCH_DOCUMENTS or num_chars + length > _MAX_BATCH_CHARS):
            yield batch
            batch, num_chars = [], 0
        batch.append(each)
        num_chars += length
    if batch:
        yield batch


class _GivenUp(Exception):
    """The same failure came too often; nothing more is tried."""


class IndexRun:
    """The counts and the jobs in flight of one run. One object per run."""

    def __init__(
        self,
        jobs: JobClient,
        manifest: Manifest,
        reader: DocumentReader,
        collection: str,
        pipeline: str,
        console: Console,
    ) -> None:
        self._jobs = jobs
        self._manifest = manifest
        self._reader = reader
        self._collection = collection
        self._pipeline = pipeline
        self._console = console
        self._progress = _ProgressLine(console)
        self._sources: set[str] = set()
        self._num_open: dict[str, int] = {}
        """Parts that are not stored yet, of each document begun."""
        self._bad: set[str] = set()
        self._num_removed = 0
        self._streak: tuple[str, int] = ("", 0)
        self._is_stopped = False
        self._is_trouble_shown = False
        self._counts: collections.Counter[str] = collections.Counter()
        self._first_error: str | None = None
        self._started = time.monotonic()

    async def index(self, places: list[Path], replaced: Sequence[Path] = ()) -> None:
        """Index what changed, then remove what is gone. Ends early where the same failure comes again and again."""
        slots = asyncio.Semaphore(_MAX_JOBS)
        with self._progress:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for batch in batches(self._changed(places)):
                        await slots.acquire()
                        task = tasks.create_task(self._index_batch(batch), name="index batch")
                        task.add_done_callback(lambda _task: slots.release())
                await self._remove(self._gone(places, replaced))
            except* _GivenUp:
                self._is_stopped = True

    def summary(self) -> IndexSummary:
        """Return what was done so far."""
        seconds = time.monotonic() - self._started
        return IndexSummary(
            collection=self._collection,
            num_documents=self._counts["indexed"] + self._counts["unchanged"] + self._counts["failed"],
            num_indexed=self._counts["indexed"],
            num_unchanged=self._counts["unchanged"],
            num_failed=self._counts["failed"],
            skipped=dict(self._reader.skipped),
            seconds=round(seconds, 3),
            documents_per_s=round(self._counts["indexed"] / seconds, 3) if seconds > 0 else 0.0,
            first_error=self._first_error,
            num_removed=self._num_removed,
            is_stopped=self._is_stopped,
        )

    def _changed(self, places: list[Path]) -> Iterator[Part]:
        for found in self._reader.read_all(places):
            source = found.document.source
            self._sources.add(source)
            if self._manifest.has(source, found.digest):
                self._manifest.adopt(source, found.place)
                self._count("unchanged", 1)
                continue
            parts = parts_of(found)
            self._manifest.begin(source, found.place, len(parts))
            self._num_open[source] = len(parts)
            yield from parts

    def _gone(self, places: list[Path], replaced: Sequence[Path]) -> list[str]:
        """Return the documents to remove. What is there and could not be read stays as it was."""
        gone: dict[str, None] = {}
        for place in map(str, (each.resolve() for each in places)):
            if place not in self._reader.unread_places:
                found = self._manifest.indexed_from(place)
                gone |= dict.fromkeys(source for source in found if source not in self._reader.unread)
        for folder in replaced:
            gone |= dict.fromkeys(self._manifest.indexed_from(str(folder.resolve())))
        return [source for source in gone if source not in self._sources]

    async def _remove(self, gone: list[str]) -> None:
        for start in range(0, len(gone), _MAX_REMOVED):
            sources = gone[start : start + _MAX_REMOVED]
            parts = [part for each in sources for part in part_sources(each, self._manifest.num_parts(each))]
            error = await self._run_job([], parts)
            if error is not None:
                self._note_failure(f"{len(sources)} removed documents", error)
                self._count("failed", len(sources))
                continue
            self._manifest.remove(sources)
            self._num_removed += len(sources)

    async def _index_batch(self, batch: list[Part]) -> None:
        error = await self._run_job([each.document for each in batch], self._stale_parts(batch))
        if error is None:
            self._streak = ("", 0)
            for each in batch:
                self._note_stored(each)
        elif len(batch) > 1 and not error.retryable:
            # One bad document must not keep its neighbours out.
            middle = len(batch) // 2
            await self._index_batch(batch[:middle])
            await self._index_batch(batch[middle:])
        else:
            bad = {each.found.document.source for each in batch} - self._bad
            self._bad |= bad
            self._count("failed", len(bad))
            self._note_failure(batch[0].document.source, error)

    def _stale_parts(self, batch: list[Part]) -> list[str]:
        """Return the parts that the earlier, longer texts of these documents have too many."""
        stale: dict[str, None] = {}
        for each in batch:
            source = each.found.document.source
            stored = part_sources(source, self._manifest.num_parts(source))
            stale |= dict.fromkeys(stored[each.num_parts :])
        return list(stale)

    def _note_stored(self, part: Part) -> None:
        source = part.found.document.source
        self._num_open[source] -= 1
        if self._num_open[source] == 0:
            self._manifest.add(source, part.found.digest, part.found.place, part.num_parts)
            self._count("indexed", 1)

    def _note_failure(self, what: str, error: SageError) -> None:
        """Keep the first reason. Raises _GivenUp where the same one, no document's own fault, came too often."""
        self._first_error = self._first_error or f"{what}: {error.message}"
        self._show_trouble(error.message)
        if isinstance(error, BadRequest | LimitExceeded):
            return
        last, times = self._streak
        self._streak = (error.message, times + 1 if last == error.message else 1)
        if self._streak[1] >= _MAX_FAILURES_IN_A_ROW:
            raise _GivenUp

    def _show_trouble(self, reason: str) -> None:
        if not self._is_trouble_shown:
            self._is_trouble_shown = True
            self._console.print(f"a job failed: {reason}", markup=False)

    async def _run_job(self, documents: list[Document], removed: list[str]) -> SageError | None:
        run = RunPipeline(
            pipeline=self._pipeline,
            documents=documents,
            parameters={"collection": self._collection},
            removed_sources=removed,
        )
        job = SubmitJob(job_id=new_id("index"), run=run, budget_ms=round(_JOB_BUDGET * 1000))
        try:
            await self._jobs.submit(job)
            state = await self._end_of(job.job_id)
        except SageError as error:
            return error
        if state.status is JobStatus.SUCCEEDED:
            return None
        return state.error.raised() if state.error is not None else SageError(f"the job was {state.status}")

    async def _end_of(self, job_id: str) -> JobState:
        """Wait for the end; show why an attempt failed that will be repeated. Raises as `JobClient.wait`."""
        ends = time.monotonic() + _JOB_BUDGET
        while (left := ends - time.monotonic()) > _LOOK_INTERVAL:
            try:
                return await self._jobs.wait(job_id, _LOOK_INTERVAL)
            except DeadlineExceeded:
                state = await self._jobs.state(job_id)
                if state.error is not None:
                    self._show_trouble(f"{state.error.message} (it is tried again)")
        return await self._jobs.wait(job_id, left)

    def _count(self, what: str, number: int) -> None:
        self._counts[what] += number
        self._progress.show(self._counts, self._reader.skipped.total(), time.monotonic() - self._started)


class _ProgressLine:
    """A moving line on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_at = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task("reading", total=None)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, counts: collections.Counter[str], num_skipped: int, seconds: float) -> None:
        """Show the counts so far."""
        rate = counts["indexed"] / seconds if seconds > 0 else 0.0
        line = (
            f"{counts['indexed']} indexed ({rate:.1f}/s), {counts['unchanged']} unchanged, "
            f"{counts['failed']} failed, {num_skipped} left out"
        )
        self._progress.update(self._task, description=line)
        if self._progress.disable and time.monotonic() - self._shown_at >= _PLAIN_INTERVAL:
            self._shown_at = time.monotonic()
            self._console.print(line, markup=False)
