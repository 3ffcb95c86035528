"""Index documents as durable jobs: read, batch, submit, wait; remember what is done, so a second run is short."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sage_cli.connection import open_bus
from sage_cli.documents import DocumentReader, FoundDocument
from sage_cli.manifest import Manifest
from sage_cli.runtime import Instance
from sage_client import JobClient
from sage_core import Paths, SageError, new_id
from sage_wire.messages import JobStatus, RunPipeline, SubmitJob

__all__ = ["IndexSummary", "batches", "run_index"]

_MAX_BATCH_DOCUMENTS = 16
_MAX_BATCH_CHARS = 200_000
"""A batch stays well under what one message carries, and a lost one is quickly repeated."""
_MAX_JOBS = 4
_JOB_BUDGET = 600.0
_PLAIN_INTERVAL = 5.0


class IndexSummary(msgspec.Struct, frozen=True):
    """What a run of `sage index` did. `skipped` counts files by reason."""

    collection: str
    num_documents: int
    num_indexed: int
    num_unchanged: int
    num_failed: int
    skipped: dict[str, int]
    seconds: float
    documents_per_s: float
    first_error: str | None = None

    def text(self) -> str:
        """Return the summary as a sentence per fact."""
        lines = [
            f"{self.num_documents} documents in collection {self.collection!r}: {self.num_indexed} indexed "
            f"({self.documents_per_s:.1f}/s, {self.seconds:.1f} s), {self.num_unchanged} unchanged, "
            f"{self.num_failed} failed"
        ]
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            lines.append(f"left out: {reasons}")
        return "\n".join(lines)


async def run_index(
    instance: Instance,
    places: list[Path],
    *,
    collection: str,
    pipeline: str,
    max_bytes: int,
    is_forced: bool,
    console: Console,
) -> IndexSummary:
    """Index everything under `places`. Documents that fail are counted; those after them are still indexed."""
    manifest = Manifest.load(Paths.for_instance(instance.name).data, collection)
    async with open_bus(instance) as bus:
        if is_forced:
            manifest.forget_all()
        run = _Run(JobClient(bus), manifest, DocumentReader(max_bytes), collection, pipeline, console)
        try:
            await run.index(places)
        finally:
            manifest.save()
    return run.summary()


def batches(documents: Iterator[FoundDocument]) -> Iterator[list[FoundDocument]]:
    """Yield documents in groups bounded in number and size; a document over the size stands alone."""
    batch: list[FoundDocument] = []
    num_chars = 0
    for each in documents:
        length = len(each.document.text)
        if batch and (len(batch) >= _MAX_BATCH_DOCUMENTS or num_chars + length > _MAX_BATCH_CHARS):
            yield batch
            batch, num_chars = [], 0
        batch.append(each)
        num_chars += length
    if batch:
        yield batch


class _Run:
    """The counts and the jobs in flight of one run."""

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
        self._progress = _ProgressLine(console)
        self._counts: collections.Counter[str] = collections.Counter()
        self._first_error: str | None = None
        self._started = time.monotonic()

    async def index(self, places: list[Path]) -> None:
        slots = asyncio.Semaphore(_MAX_JOBS)
        with self._progress:
            async with asyncio.TaskGroup() as tasks:
                for batch in batches(self._changed(places)):
                    await slots.acquire()
                    task = tasks.create_task(self._index_batch(batch), name="index batch")
                    task.add_done_callback(lambda _task: slots.release())

    def summary(self) -> IndexSummary:
        seconds = time.monotonic() - self._started
        return IndexSummary(
            collection=self._collection,
            num_documents=self._counts.total(),
            num_indexed=self._counts["indexed"],
            num_unchanged=self._counts["unchanged"],
            num_failed=self._counts["failed"],
            skipped=dict(self._reader.skipped),
            seconds=round(seconds, 3),
            documents_per_s=round(self._counts["indexed"] / seconds, 3) if seconds > 0 else 0.0,
            first_error=self._first_error,
        )

    def _changed(self, places: list[Path]) -> Iterator[FoundDocument]:
        for found in self._reader.read_all(places):
            if self._manifest.has(found.document.source, found.digest):
                self._count("unchanged", 1)
            else:
                yield found

    async def _index_batch(self, batch: list[FoundDocument]) -> None:
        error = await self._run_job(batch)
        if error is None:
            self._manifest.add((each.document.source, each.digest) for each in batch)
            self._count("indexed", len(batch))
        elif len(batch) > 1 and not error.retryable:
            # One bad document must not keep its neighbours out.
            middle = len(batch) // 2
            await self._index_batch(batch[:middle])
            await self._index_batch(batch[middle:])
        else:
            self._first_error = self._first_error or f"{batch[0].document.source}: {error.message}"
            self._count("failed", len(batch))

    async def _run_job(self, batch: list[FoundDocument]) -> SageError | None:
        run = RunPipeline(
            pipeline=self._pipeline,
            documents=[each.document for each in batch],
            parameters={"collection": self._collection},
        )
        job = SubmitJob(job_id=new_id("index"), run=run, budget_ms=round(_JOB_BUDGET * 1000))
        try:
            await self._jobs.submit(job)
            state = await self._jobs.wait(job.job_id, _JOB_BUDGET)
        except SageError as error:
            return error
        if state.status is JobStatus.SUCCEEDED:
            return None
        return state.error.raised() if state.error is not None else SageError(f"the job was {state.status}")

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
