"""Durable jobs on a real nats-server: `kill -9` of the planner in the middle of them loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamState

from sage_bus import Bus, JobQueue, connect
from sage_bus.testing import NatsServer
from sage_client import JobClient
from sage_core import BusSettings
from sage_wire import decode, encode, subjects
from sage_wire.messages import Document, Indexed, JobStatus, RunPipeline, SubmitJob

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


@asynccontextmanager
async def jetstream(site: Site) -> AsyncIterator[JetStreamContext]:
    """Ask JetStream itself, by its own client."""
    peer = await nats.connect(site.url)
    try:
        yield peer.jetstream()
    finally:
        await peer.close()


async def queue_state(site: Site) -> StreamState:
    async with jetstream(site) as stream:
        return (await stream.stream_info(subjects.JOBS_STREAM)).state


async def forget_ids_after(site: Site, seconds: float) -> None:
    """Let the queue tell jobs by their ids for less than two minutes."""
    async with jetstream(site) as stream:
        config = (await stream.stream_info(subjects.JOBS_STREAM)).config
        await stream.update_stream(config.evolve(duplicate_window=seconds))


async def until_empty(site: Site) -> None:
    async with asyncio.timeout(20):
        while (await queue_state(site)).messages:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Wire:
    """A way to the server that falls silent once `last` has gone up: that arrives, and its answer does not."""

    def __init__(self, url: str, last: bytes) -> None:
        self._host, self._port = url.removeprefix("nats://").rsplit(":", 1)
        self._last = last
        self.is_cut = asyncio.Event()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            await asyncio.gather(self._up(reader, up_writer), self._down(up_reader, writer))
        except ConnectionError:
            pass  # one side was killed
        finally:
            writer.close()
            up_writer.close()

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recent = b""
        while data := await reader.read(65536):
            if self.is_cut.is_set():
                continue
            recent = (recent + data)[-65536:]
            if self._last in recent:
                self.is_cut.set()
            writer.write(data)
        writer.close()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.is_cut.is_set():
                writer.write(data)


async def test_killed_between_result_and_ack_the_job_is_only_acknowledged(site: Site) -> None:
    client = site.client
    await client.submit(index_job("j1"))
    async with Wire(site.url, last=b"succeeded") as wire:
        victim = await start_puller(Site(wire.url, site.bus, client), "victim")
        await asyncio.wait_for(wire.is_cut.wait(), 20)
        first = await client.wait("j1", 20)
        os.kill(victim.pid, signal.SIGKILL)
        await victim.wait()
    assert (await queue_state(site)).messages == 1, "the result is stored, the job is not acknowledged"
    heir = await start_puller(site, "heir")
    try:
        await until_empty(site)
    finally:
        await stop(heir)
    assert (first.status, first.planner_id, first.attempt) == (JobStatus.SUCCEEDED, "victim", 1)
    assert await client.state("j1") == first


async def test_submitted_again_after_the_queue_forgot_its_id_a_job_still_runs_once(site: Site) -> None:
    client, queue = site.client, await open_queue(site.bus)
    await client.submit(index_job("j1"))
    await forget_ids_after(site, 0.1)
    victim = await start_puller(site, "victim", mode="hang")
    await until_running(client, "j1", "victim")
    await asyncio.sleep(0.2)
    await queue.submit("j1", encode(index_job("j1")))
    async with asyncio.timeout(20):
        # Two were stored, one is left.
        while ((found := await queue_state(site)).last_seq, found.messages) != (2, 1):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    state = await client.state("j1")
    assert (state.status, state.attempt) == (JobStatus.RUNNING, 1)
    os.kill(victim.pid, signal.SIGKILL)
    await victim.wait()
    heir = await start_puller(site, "heir")
    try:
        state = await client.wait("j1", 30)
        await until_empty(site)
    finally:
        await stop(heir)
    assert (state.status, state.planner_id, state.attempt) == (JobStatus.SUCCEEDED, "heir", 2)


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
