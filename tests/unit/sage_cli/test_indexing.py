"""What `sage index` puts into a collection, what leaves it, and when it gives up."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from sage_bus import Entry, KeyValue, MemoryBroker
from sage_cli.document_parts import MAX_PART_CHARS, parts_of
from sage_cli.documents import DocumentReader, FoundDocument
from sage_cli.exits import CommandFailed, Exit
from sage_cli.indexing import IndexRun, IndexSummary
from sage_cli.manifest import Manifest
from sage_cli.pipeline_check import check_pipeline
from sage_client import JobClient
from sage_core import BadRequest, Conflict, SageError
from sage_wire import decode, encode, subjects
from sage_wire.messages import Document, JobState, JobStatus, RunPipeline, ServedModel, SubmitJob, WireError

Refuse = Callable[[RunPipeline], SageError | None]


class Cluster:
    """Runs index jobs against a collection kept in memory, as a planner with its operators does."""

    def __init__(self, folder: Path) -> None:
        self.broker = MemoryBroker()
        self.texts: dict[str, str] = {}
        self.num_jobs = 0
        self.refuse: Refuse = lambda _run: None
        self.shown = io.StringIO()
        self._folder = folder

    async def serve(self) -> None:
        bus = self.broker.connect("planner")
        queue = await bus.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT)
        bucket = await bus.key_value(subjects.JOBS_BUCKET)
        async for job in queue.pull(1):
            submitted = decode(SubmitJob, job.payload)
            entry = await self._entry(bucket, submitted.job_id)
            assert entry.value is not None
            self.num_jobs += 1
            error = self.refuse(submitted.run)
            state = msgspec.structs.replace(
                decode(JobState, entry.value),
                status=JobStatus.FAILED if error else JobStatus.SUCCEEDED,
                error=WireError.of(error) if error else None,
            )
            if error is None:
                for source in submitted.run.removed_sources:
                    self.texts.pop(source, None)
                self.texts |= {each.source: each.text for each in submitted.run.documents}
            await bucket.update(submitted.job_id, encode(state), entry.revision)
            await job.ack()

    async def _entry(self, bucket: KeyValue, job_id: str) -> Entry:
        # The job may be here before its submitter has noted it as queued.
        for _ in range(100):
            entry = await bucket.get(job_id)
            if entry is not None:
                return entry
            await asyncio.sleep(0)
        raise AssertionError(f"job {job_id} has no state")

    async def index(
        self, *places: Path, replaced: tuple[Path, ...] = (), max_bytes: int = 2**21
    ) -> IndexSummary:
        manifest = Manifest.load(self._folder, "docs")
        run = IndexRun(
            JobClient(self.broker.connect("cli")),
            manifest,
            DocumentReader(max_bytes),
            "docs",
            "index-docs",
            Console(file=self.shown, width=200),
        )
        await run.index(list(places), replaced)
        manifest.save()
        return run.summary()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "data")
    serving = asyncio.create_task(made.serve())
    yield made
    serving.cancel()
    await asyncio.wait([serving])


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


async def test_a_deleted_file_leaves_the_collection_and_is_counted(cluster: Cluster, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a="one", b="two")
    await cluster.index(folder, write(tmp_path / "other", c="three"))
    (folder / "b.txt").unlink()
    summary = await cluster.index(folder)
    assert cluster.texts == {"a.txt": "one", "c.txt": "three"}
    assert (summary.num_removed, summary.num_unchanged, summary.num_indexed) == (1, 1, 0)
    assert "1 removed" in summary.text()
    assert (await cluster.index(folder)).num_removed == 0


async def test_a_file_that_cannot_be_read_now_stays(cluster: Cluster, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", a="one" * 100, b="two")
    await cluster.index(folder)
    await cluster.index(folder, max_bytes=10)
    assert sorted(cluster.texts) == ["a.txt", "b.txt"]


async def test_a_replaced_folder_leaves_the_collection_except_for_names_that_both_have(
    cluster: Cluster, tmp_path: Path
) -> None:
    shipped = write(tmp_path / "shipped", a="shipped a", same="same", b="shipped b")
    mine = write(tmp_path / "mine", a="my a", same="same")
    await cluster.index(shipped)
    summary = await cluster.index(mine, replaced=(shipped,))
    assert cluster.texts == {"a.txt": "my a", "same.txt": "same"}
    assert summary.num_removed == 1


async def test_a_big_file_is_indexed_in_parts_and_replaced_with_all_of_them(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = write(tmp_path / "mine", big="word " * 120_000)
    summary = await cluster.index(folder)
    assert sorted(cluster.texts) == ["big.txt", "big.txt#2", "big.txt#3"]
    assert (summary.num_documents, summary.num_indexed) == (1, 1)
    write(folder, big="word " * 50_000)
    await cluster.index(folder)
    assert sorted(cluster.texts) == ["big.txt", "big.txt#2"]
    (folder / "big.txt").unlink()
    assert (await cluster.index(folder)).num_removed == 1
    assert cluster.texts == {}


def test_parts_lose_no_text_and_end_at_lines() -> None:
    text = "\n".join(f"line {number} of a long file" for number in range(30_000))
    parts = parts_of(FoundDocument(Document(source="s", text=text, title="T"), "digest"))
    assert all(len(each.document.text) <= MAX_PART_CHARS for each in parts)
    assert [each.document.source for each in parts] == ["s", *(f"s#{n + 2}" for n in range(len(parts) - 1))]
    assert "".join(each.document.text for each in parts) == text
    assert {each.document.title for each in parts} == {"T"}


def test_text_without_any_break_is_cut_too() -> None:
    parts = parts_of(FoundDocument(Document(source="s", text="x" * (2 * MAX_PART_CHARS + 1)), "digest"))
    assert [len(each.document.text) for each in parts] == [MAX_PART_CHARS, MAX_PART_CHARS, 1]


async def test_one_failure_again_and_again_is_shown_once_and_ends_the_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    folder = write(tmp_path / "mine", **{f"d{number}": f"text {number}" for number in range(200)})
    cluster.refuse = lambda _run: Conflict("the disk is full")
    summary = await cluster.index(folder)
    assert summary.is_stopped
    assert cluster.num_jobs < 30
    assert cluster.shown.getvalue().count("the disk is full") == 1
    assert "run the same command again" in (summary.problem() or "")
    cluster.refuse = lambda _run: None
    again = await cluster.index(folder)
    assert (again.problem(), len(cluster.texts)) == (None, 200)


async def test_faults_of_single_documents_do_not_end_the_run(cluster: Cluster, tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", **{f"d{number}": f"text {number}" for number in range(20)})
    bad = {f"d{number}.txt" for number in range(5)}

    def refuse(run: RunPipeline) -> SageError | None:
        return BadRequest("no text") if any(each.source in bad for each in run.documents) else None

    cluster.refuse = refuse
    summary = await cluster.index(folder)
    assert (summary.num_failed, summary.num_indexed, summary.is_stopped) == (5, 15, False)


@pytest.mark.parametrize("name", ["index-docs", "pipeline/index-docs", "from-an-older-planner"])
def test_a_pipeline_for_documents_is_taken(name: str) -> None:
    check_pipeline(name, PIPELINES)


@pytest.mark.parametrize(
    ("name", "says"), [("nope", "does not exist"), ("rag-docs", "takes messages"), ("pipeline/nope", "exist")]
)
def test_another_pipeline_is_wrong_usage_and_names_those_that_fit(name: str, says: str) -> None:
    with pytest.raises(CommandFailed, match=f"{says}.*index-docs") as refused:
        check_pipeline(name, PIPELINES)
    assert refused.value.code is Exit.USAGE


PIPELINES = [
    ServedModel(name="pipeline/index-docs", task="pipeline", takes="documents"),
    ServedModel(name="pipeline/rag-docs", task="pipeline", takes="messages"),
    ServedModel(name="pipeline/from-an-older-planner", task="pipeline"),
]
