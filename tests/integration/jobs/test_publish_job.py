"""A job published by `examples/publish_job.py`, which knows NATS and MessagePack alone, to a whole instance."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import nats
import psutil
import pytest

from integration_instances import Instance
from sage_bus import connect
from sage_bus.testing import free_port
from sage_client import JobClient
from sage_core import BusSettings, new_id
from sage_wire import subjects

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

EXAMPLE = Path(__file__).parents[3] / "examples" / "publish_job.py"
FINAL = ("succeeded", "failed", "cancelled")
QUESTION = "What makes bread rise?"
BREAD = "# Bread\n\nYeast makes bread rise, because it turns sugar into gas.\n"


class Site:
    """A whole instance that gives a job to another planner after two seconds."""

    def __init__(self, instance: Instance, bus_url: str) -> None:
        self.instance, self.bus_url = instance, bus_url

    def pid(self, kind: str) -> int:
        (pid,) = [actor["pid"] for actor in self.instance.json("status")["actors"] if actor["kind"] == kind]
        return int(pid)

    def nats_server(self) -> psutil.Process:
        (found,) = [
            child
            for child in psutil.Process(self.instance.process.pid).children(recursive=True)
            if child.name() == "nats-server"
        ]
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let no answer be written while inside: a job comes as far as its last node and stays there."""
        pid = self.pid("llm-worker")
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("jobs")
    environment = {"SAGE_PLANNER__JOB_ACK_WAIT": "2s"}
    with Instance("jobs", home, "--engine", "extractive", "--port", "0", environment=environment) as instance:
        (home / "bread.md").write_text(BREAD)
        indexed = instance.run("index", str(home / "bread.md"))
        assert indexed.returncode == 0, indexed.stderr
        (runtime,) = home.rglob("instance.json")
        yield Site(instance, json.loads(runtime.read_text())["bus_url"])


class History:
    """Every state that a job goes through, as the server tells whoever listens."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    async def add(self, message: Any) -> None:
        self.states.append(msgpack.unpackb(message.data))
        self._changed.set()

    async def until_last_node(self, *, attempt: int = 1) -> None:
        """Wait until nothing but the last node of a run is left."""
        async with asyncio.timeout(30):
            while not any(
                state["attempt"] >= attempt and state.get("num_nodes_done") == state["num_nodes"] - 1
                for state in self.states
            ):
                self._changed.clear()
                await self._changed.wait()

    def finals(self) -> list[str]:
        return [state["status"] for state in self.states if state["status"] in FINAL]

    def num_runs(self) -> int:
        return len(
            [state for state in self.states if state["status"] == "running" and "num_nodes_done" not in state]
        )


@asynccontextmanager
async def history_of(site: Site, job_id: str) -> AsyncIterator[History]:
    history = History()
    peer = await nats.connect(site.bus_url)
    await peer.subscribe(f"sagekv.v1.sage_jobs.{job_id}", cb=history.add)
    await peer.flush()
    try:
        yield history
    finally:
        await peer.close()


async def publish(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process, timeout: float = 60) -> tuple[int, str, str]:
    """Return exit status, standard output and standard error."""
    try:
        output, errors = await asyncio.wait_for(process.communicate(), timeout)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def asked(site: Site, job_id: str, *more: str) -> asyncio.subprocess.Process:
    return await publish(QUESTION, "--url", site.bus_url, "--job-id", job_id, *more)


def is_answer(found: tuple[int, str, str]) -> bool:
    status, output, errors = found
    return (
        status == 0
        and "Yeast makes bread rise" in output
        and bool(re.search(r"^\[1\] \S*bread.md$", output, re.MULTILINE))
        and errors == ""
    )


async def num_queued(site: Site) -> int:
    peer = await nats.connect(site.bus_url)
    try:
        return int((await peer.jetstream().stream_info(subjects.JOBS_STREAM)).state.messages)
    finally:
        await peer.close()


async def until_empty(site: Site) -> None:
    async with asyncio.timeout(20):
        while await num_queued(site):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_the_example_needs_nothing_of_sage() -> None:
    imported = set(re.findall(r"^(?:import|from) ([a-z_]+)", EXAMPLE.read_text(), re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"msgpack", "nats"}


async def test_a_job_is_answered_with_its_sources_and_its_result_stays(site: Site) -> None:
    job_id = new_id("job")
    async with history_of(site, job_id) as history:
        first = await ended(await asked(site, job_id))
        assert is_answer(first), first
        # It had ended before anybody looked.
        assert await ended(await asked(site, job_id)) == first
        await until_empty(site)
    assert history.finals() == ["succeeded"]
    assert history.num_runs() == 1


async def test_kill_9_of_the_planner_while_the_job_runs_loses_nothing(site: Site) -> None:
    job_id, planner = new_id("job"), site.pid("planner")
    async with history_of(site, job_id) as history:
        with site.held():
            publisher = await asked(site, job_id)
            await history.until_last_node()
            os.kill(planner, signal.SIGKILL)
        found = await ended(publisher)
        await until_empty(site)
    assert is_answer(found), found
    assert history.finals() == ["succeeded"]
    assert history.states[-1]["attempt"] > 1
    assert site.pid("planner") != planner


async def test_kill_9_of_nats_server_while_the_job_runs_loses_nothing(site: Site) -> None:
    job_id = new_id("job")
    async with history_of(site, job_id) as history:
        with site.held():
            publisher = await asked(site, job_id)
            await history.until_last_node()
            server = site.nats_server()
            server.kill()
            server.wait(10)
        found = await ended(publisher)
    assert is_answer(found), found
    await until_empty(site)


async def test_submitted_by_two_a_job_runs_once_and_answers_both(site: Site) -> None:
    job_id = new_id("job")
    async with history_of(site, job_id) as history:
        with site.held():
            first = await asked(site, job_id)
            await history.until_last_node()
            second = await asked(site, job_id)
            peer = await nats.connect(site.bus_url)
            job = {"job_id": job_id, "run": {"type": "run_pipeline", "pipeline": "rag-docs"}}
            stored = await peer.jetstream().publish(
                "sagejobs.v1.submit", msgpack.packb(job), headers={"Nats-Msg-Id": job_id}
            )
            await peer.close()
        found = [await ended(first), await ended(second)]
        await until_empty(site)
    assert stored.duplicate
    assert is_answer(found[0]), found
    assert found[0] == found[1]
    assert history.finals() == ["succeeded"]
    assert history.num_runs() == 1


async def test_whoever_gives_up_waiting_gets_the_result_later(site: Site) -> None:
    job_id = new_id("job")
    with site.held():
        status, output, errors = await ended(await asked(site, job_id, "--timeout", "3"))
    assert (status, output) == (4, "")
    assert errors == f"job {job_id} has not ended, it is running: no answer in time\n"
    found = await ended(await asked(site, job_id))
    assert is_answer(found), found


async def test_a_cancelled_job_ends_the_wait_with_status_1(site: Site) -> None:
    job_id = new_id("job")
    bus = await connect(BusSettings(url=site.bus_url), name="test")
    async with history_of(site, job_id) as history:
        with site.held():
            publisher = await asked(site, job_id)
            await history.until_last_node()
            await JobClient(bus).cancel(job_id)
            found = await ended(publisher)
    await bus.close()
    assert found == (1, "", f"job {job_id} cancelled: \n")


async def test_what_could_not_be_stored_is_said_so_with_status_3() -> None:
    status, output, errors = await ended(
        await publish(
            QUESTION, "--url", f"nats://127.0.0.1:{free_port()}", "--job-id", "j1", "--timeout", "1"
        )
    )
    assert (status, output) == (3, "")
    assert errors.startswith("job j1 may not be stored: ")
    assert "Connect call failed" in errors


async def test_an_id_that_is_no_key_is_wrong_usage() -> None:
    status, _, errors = await ended(await publish(QUESTION, "--job-id", "a.b"))
    assert status == 2
    assert "--job-id is 'a.b'; expected 1 to 128 of A-Z a-z 0-9 _ -" in errors
