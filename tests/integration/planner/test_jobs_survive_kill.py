"""Durable jobs on a real nats-server: `kill -9` of the planner in the middle of them loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest

from sage_bus import Bus, JobQueue, connect
from sage_bus.testing import NatsServer
from sage_client import JobClient
from sage_core import BusSettings
from sage_wire import decode, encode, subjects
from sage_wire.messages import Document, Indexed, JobState, JobStatus, RunPipeline, SubmitJob

pytestmark = pytest.mark.integration

ACK_WAIT = 1.0
PULLER = Path(__file__).parent / "puller_process.py"


def index_job(job_id: str, num_lines: int = 3) -> SubmitJob:
    text = "\n".join(f"line {number} of {job_id}" for number in range(num_lines))
    document = Document(source=f"{job_id}.txt", text=text)
    return SubmitJob(job_id=job_id, run=RunPipeline(pipeline="index-docs", documents=[document]))


@dataclass
class Site:
    """A server with an open job queue, and a connection to it."""

    url: str
    bus: Bus
    client: JobClient


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with NatsServer() as server:
        bus = await connect(BusSettings(url=server.url), name="test")
        # The first to open the queue sets its rules; a short ack wait keeps the tests short.
        await open_queue(bus)
        yield Site(server.url, bus, JobClient(bus))
        await bus.close()


async def open_queue(bus: Bus) -> JobQueue:
    return await bus.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT, ack_wait=ACK_WAIT, max_deliver=21)


async def start_puller(site: Site, name: str, *, mode: str = "work") -> asyncio.subprocess.Process:
    """Start a planner's job puller as a process of its own and wait until it pulls."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PULLER), site.url, name, mode, str(ACK_WAIT), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 20) == b"pulling\n"
    return process


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await asyncio.wait_for(process.wait(), 10)


async def until_running(client: JobClient, job_id: str, planner_id: str) -> None:
    async with asyncio.timeout(20):
        while True:
            state = await client.state(job_id)
            if (
                state.status is JobStatus.RUNNING
                and state.planner_id == planner_id
                and state.num_nodes_done >= 2
            ):
                return
            await asyncio.sleep(0.02)


async def test_kill_9_in_the_middle_of_a_job_gives_it_to_another_planner(site: Site) -> None:
    client = site.client
    await client.submit(index_job("j1"))
    victim = await start_puller(site, "victim", mode="hang")
    await until_running(client, "j1", "victim")
    os.kill(victim.pid, signal.SIGKILL)
    await victim.wait()
    heir = await start_puller(site, "heir")
    try:
        state = await client.wait("j1", 30)
    finally:
        await stop(heir)
    assert (state.status, state.planner_id, state.attempt) == (JobStatus.SUCCEEDED, "heir", 2)
    assert decode(Indexed, state.value) == Indexed(num_chunks=3, num_sources=1)


async def test_kill_9_again_and_again_loses_no_job_and_gives_each_one_result(site: Site) -> None:
    client = site.client
    names = [f"job-{number}" for number in range(30)]
    for name in names:
        await client.submit(index_job(name))
    for number in range(3):
        victim = await start_puller(site, f"victim-{number}", mode="slow")
        await asyncio.sleep(0.15)
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
    heir = await start_puller(site, "heir")
    try:
        states = [await client.wait(name, 60) for name in names]
        await until_empty(site)
    finally:
        await stop(heir)
    assert {state.status for state in states} == {JobStatus.SUCCEEDED}
    assert any(state.attempt > 1 for state in states), "no job was running when its planner was killed"
    assert all(decode(Indexed, state.value).num_chunks >= 3 for state in states)


async def until_empty(site: Site) -> None:
    """Wait until JetStream itself says that the work queue holds nothing."""
    peer = await nats.connect(site.url)
    try:
        async with asyncio.timeout(20):
            while (await peer.jetstream().stream_info(subjects.JOBS_STREAM)).state.messages:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await peer.close()


async def test_killed_between_result_and_ack_the_job_is_only_acknowledged(site: Site) -> None:
    client = site.client
    await client.submit(index_job("j1"))
    bucket = await site.bus.key_value(subjects.JOBS_BUCKET)
    entry = await bucket.get("j1")
    assert entry is not None
    done = JobState(job_id="j1", status=JobStatus.SUCCEEDED, pipeline="index-docs", text="the first result")
    await bucket.update("j1", encode(done), entry.revision)
    heir = await start_puller(site, "heir")
    try:
        await until_empty(site)
    finally:
        await stop(heir)
    assert (await client.state("j1")).text == "the first result"


async def test_cancel_reaches_a_running_job(site: Site) -> None:
    client = site.client
    await client.submit(index_job("j1"))
    planner = await start_puller(site, "planner", mode="hang")
    try:
        await until_running(client, "j1", "planner")
        await client.cancel("j1")
        await until_empty(site)
    finally:
        await stop(planner)
    assert (await client.state("j1")).status is JobStatus.CANCELLED


async def test_a_malformed_job_is_a_dead_letter_and_holds_up_nobody(site: Site) -> None:
    queue = await open_queue(site.bus)
    await queue.submit("bad", b"\xc1 this is no MessagePack")
    client = site.client
    await client.submit(index_job("j1"))
    planner = await start_puller(site, "planner")
    try:
        assert (await client.wait("j1", 20)).status is JobStatus.SUCCEEDED
    finally:
        await stop(planner)
    (letter,) = await queue.dead_letters()
    assert "malformed SubmitJob" in letter.reason
