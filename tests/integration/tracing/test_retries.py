"""`kill -9` of the worker that generates, or of a job's planner: what is done again links to what was lost."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from integration_instances import Instance
from sage_bus import connect
from sage_client import JobClient
from sage_core import BusSettings
from sage_telemetry import use_parent
from sage_wire.messages import ChatMessage, JobState, JobStatus, RunPipeline, Sampling, SubmitJob
from trace_backends import HttpCollector, SeenSpan

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FLEET = """
[profiles.slow]
a0 = 0.020
m0 = 0.020
[[group]]
name = "slow"
pool = "chat"
profile = "slow"
count = 2
"""
NODES = ("question", "query_vector", "passages", "prompt", "answer")
NUM_TOKENS = 300
"""Six seconds' worth, so that the worker is killed in the middle of it."""
WITHOUT = ("--without", "embedding-worker", "--without", "operator-worker", "--without", "planner")


@pytest.fixture
def collector() -> Iterator[HttpCollector]:
    made = HttpCollector()
    yield made
    made.stop()


def busy_worker(instance: Instance) -> tuple[str, int]:
    """Return the id and the process of the one worker that runs something."""
    for _ in range(40):
        busy = [
            (actor["id"], actor["pid"])
            for actor in instance.json("status")["actors"]
            if actor["kind"] == "llm-worker" and actor["num_in_flight"]
        ]
        if busy:
            ((actor_id, pid),) = busy
            return actor_id, pid
        time.sleep(0.05)
    raise AssertionError("no worker says that it runs the request")


def generate_through_a_kill(instance: Instance, header: str) -> tuple[str, int]:
    """Stream an answer whose first worker is killed; return that worker and the tokens that came."""
    content = f"Go on.\nsage-output-tokens: {NUM_TOKENS}"
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 500,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    killed, usage = "", {}
    with httpx.stream(
        "POST", f"{instance.url}/v1/chat/completions", json=body, headers={"traceparent": header}, timeout=60
    ) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            usage = chunk.get("usage") or usage
            if not killed and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                killed, pid = busy_worker(instance)
                os.kill(pid, signal.SIGKILL)
    return killed, usage["completion_tokens"]


def test_the_attempt_after_a_kill_links_to_the_one_that_was_lost(
    tmp_path: Path, collector: HttpCollector
) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    header = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    with Instance(
        "retried",
        tmp_path,
        *("--fleet", str(tmp_path / "fleet.toml"), "--port", "0", *WITHOUT),
        environment=collector.environment(),
    ) as instance:
        killed, num_tokens = generate_through_a_kill(instance, header)
        table = instance.run("trace", header[3:35]).stdout
    assert num_tokens == NUM_TOKENS
    spans = collector.trace(header[3:35])
    (root,) = [span for span in spans if span.parent_id == header[36:52]]
    first, second = sorted(
        (span for span in spans if span.parent_id == root.span_id), key=lambda span: span.start_ns
    )
    assert (first.name, second.name) == ("submit chat", "submit chat")
    assert (first.attributes["sage.request.attempt"], second.attributes["sage.request.attempt"]) == (0, 1)
    assert first.is_error
    assert first.attributes["error.type"] == "worker_lost"
    assert first.attributes["sage.worker.id"] == killed
    assert first.links == []
    assert not second.is_error
    assert second.links == [(first.trace_id, first.span_id)]
    assert second.attributes["sage.worker.id"] != killed
    assert first.end_ns <= second.start_ns
    # Of the first attempt, what others recorded is there; what its worker had recorded died with it.
    assert below(spans, first) == ["dispatch", "queue"]
    assert below(spans, second) == ["dispatch", "perform", "queue"]
    assert not root.is_error
    assert "submit chat (retry)" in table


def below(spans: list[SeenSpan], parent: SeenSpan) -> list[str]:
    return sorted(span.name for span in spans if span.parent_id == parent.span_id)


async def run_job_through_a_kill(instance: Instance, bus_url: str, header: str) -> JobState:
    """Submit a pipeline job and kill the planner once it has stored and exported some progress; return the result."""
    bus = await connect(BusSettings(url=bus_url), name="publisher")
    try:
        client = JobClient(bus)
        run = RunPipeline(
            pipeline="rag-docs",
            messages=[ChatMessage(role="user", content="Why?")],
            sampling=Sampling(max_tokens=NUM_TOKENS),
        )
        with use_parent(header):
            await client.submit(SubmitJob(job_id="killed", run=run))
        async with asyncio.timeout(20):
            while (await client.state("killed")).num_nodes_done < 3:  # noqa: ASYNC110 - another process's progress
                await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)  # spans leave twice a second
        (planner,) = [actor for actor in instance.json("status")["actors"] if actor["kind"] == "planner"]
        assert (await client.state("killed")).status is JobStatus.RUNNING
        os.kill(planner["pid"], signal.SIGKILL)
        return await client.wait("killed", 60.0)
    finally:
        await bus.close()


def test_the_run_of_a_job_after_a_kill_of_its_planner_links_to_the_lost_run(
    tmp_path: Path, collector: HttpCollector
) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.md").write_text("# Penguins\n\nEmperor penguins breed in winter.\n")
    header = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    with Instance(
        "job",
        tmp_path,
        *("--fleet", str(tmp_path / "fleet.toml"), "--port", "0"),
        environment=collector.environment() | {"SAGE_PLANNER__JOB_ACK_WAIT": "2s"},
    ) as instance:
        instance.json("index", str(tmp_path / "documents"))
        (runtime,) = tmp_path.rglob("instance.json")
        bus_url = json.loads(runtime.read_text())["bus_url"]
        state = asyncio.run(run_job_through_a_kill(instance, bus_url, header))
    assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 2)
    spans = collector.trace(header[3:35])
    # The span of the run that was lost died with its planner; the nodes that had ended by then name it.
    (job,) = [span for span in spans if span.name == "job"]
    assert (job.parent_id, job.is_error) == (header[36:52], False)
    ((trace_id, lost_run),) = job.links
    assert trace_id == header[3:35]
    ended = {span.name for span in spans if span.parent_id == lost_run}
    assert {"node question", "node query_vector", "node passages"} <= ended
    nodes = [span.name for span in spans if span.parent_id == job.span_id]
    assert sorted(nodes) == sorted(f"node {node}" for node in NODES)
