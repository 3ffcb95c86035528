"""Two scheduler processes, one leader: whatever is done to it, no request is lost and no attempt runs twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sage_actor import Roster
from sage_bus import Bus, Received, connect
from sage_bus.testing import NatsServer
from sage_client import RequestPort, RequestStream
from sage_core import BusSettings
from sage_wire import decode, encode, raw, subjects
from sage_wire.messages import Dispatch, Dispatches, Failed, Frame, Generate, TextPrompt, Tokens

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

WORKER = Path(__file__).parent / "counting_worker.py"
TEXT = " ".join(f"w{index}" for index in range(12))
WORK = Generate(model="words", prompt=TextPrompt(text=TEXT))
TAKEOVER_SECONDS = 4.0
"""Two for the lease, up to one for the server to notice, and some for a busy machine."""


class Site:
    """A server, processes, and a consumer."""

    def __init__(self, server: NatsServer, folder: Path, exits: AsyncExitStack) -> None:
        self.server = server
        self.folder = folder
        self._exits = exits
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def connect(self, name: str) -> Bus:
        bus = await connect(BusSettings(url=self.server.url), name=name)
        self._exits.push_async_callback(bus.close)
        return bus

    async def start(self) -> None:
        self.roster = Roster(await self.connect("consumer-control"))
        await self.roster.start()
        self._exits.push_async_callback(self.roster.stop)
        self.port = RequestPort(await self.connect("consumer"), roster=self.roster)
        await self.port.start()
        self._exits.push_async_callback(self.port.close)

    async def start_worker(self, actor_id: str, *, limit: int, seconds: float = 0.01) -> None:
        log = self.folder / "attempts.txt"
        await self._spawn(
            actor_id, str(WORKER), self.server.url, actor_id, str(seconds), str(limit), str(log)
        )
        await self.until(lambda: actor_id in self.roster.actors)

    async def start_scheduler(self, actor_id: str) -> None:
        await self._spawn(actor_id, "-m", "sage_scheduler", "--id", actor_id)
        await self.until(
            lambda: actor_id in self.roster.actors and self.roster.actors[actor_id].state == "ready"
        )

    async def _spawn(self, actor_id: str, *arguments: str) -> None:
        environment = os.environ | {
            "SAGE_BUS__URL": self.server.url,
            "SAGE_ACTOR__ANNOUNCE_INTERVAL": "0.2s",
            "SAGE_ACTOR__DRAIN_TIMEOUT": "1s",
            "SAGE_TELEMETRY__LOG_LEVEL": "warning",
            "XDG_STATE_HOME": str(self.folder),
        }
        self.processes[actor_id] = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        self._exits.push_async_callback(self.end, actor_id)

    async def until(self, is_true: Callable[[], bool], seconds: float = 30.0) -> float:
        """Return how long it took until `is_true`."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with asyncio.timeout(seconds):
            while not is_true():  # noqa: ASYNC110 - the roster keeps no event of it
                await asyncio.sleep(0.01)
        return loop.time() - started

    def leader(self) -> str | None:
        leaders = [name for name, actor in self.roster.actors.items() if "words" in actor.leads]
        return leaders[0] if len(leaders) == 1 else None

    async def led(self) -> str:
        await self.until(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader is not None
        return leader

    def other(self, leader: str) -> str:
        return {"s1": "s2", "s2": "s1"}[leader]

    def tell(self, actor_id: str, number: signal.Signals) -> None:
        self.processes[actor_id].send_signal(number)

    async def end(self, actor_id: str, number: signal.Signals = signal.SIGKILL) -> None:
        process = self.processes.pop(actor_id, None)
        if process is not None:
            if process.returncode is None:
                process.send_signal(number)
            await process.wait()

    def submit(self, count: int) -> list[asyncio.Task[str]]:
        return [
            asyncio.create_task(text_of(self.port.submit("words", WORK, budget=60))) for _ in range(count)
        ]

    def attempts(self) -> Counter[str]:
        return Counter((self.folder / "attempts.txt").read_text().split())

    async def replay(self, actor_id: str) -> str:
        log = self.folder / "sage" / "default" / "events" / f"{actor_id}.log"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sage_cli", "replay", str(log),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()


async def text_of(stream: RequestStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Tokens)])


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with NatsServer() as server:
        async with AsyncExitStack() as exits:
            site = Site(server, tmp_path, exits)
            await site.start()
            await site.start_worker("w1", limit=4)
            await site.start_worker("w2", limit=4)
            await site.start_scheduler("s1")
            await site.start_scheduler("s2")
            await site.led()
            yield site


async def keep_submitting(site: Site, tasks: list[asyncio.Task[str]], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        tasks += site.submit(2)
        await asyncio.sleep(0.05)


async def test_kill_9_of_the_leader_under_load_loses_no_request(site: Site) -> None:
    leader = await site.led()
    tasks = site.submit(40)
    load = asyncio.create_task(keep_submitting(site, tasks, 5.0))
    await asyncio.sleep(0.3)
    await site.end(leader)
    took = await site.until(lambda: site.leader() == site.other(leader))
    assert took < TAKEOVER_SECONDS
    await load
    texts = await asyncio.gather(*tasks)
    assert {text.split() == TEXT.split() for text in texts} == {True}
    assert max(site.attempts().values()) == 1, "an attempt ran twice"
    for name in (leader, site.other(leader)):
        assert "every command is the same" in await site.replay(name)


async def test_a_leader_that_is_frozen_and_wakes_up_dispatches_nothing_more(site: Site) -> None:
    leader = await site.led()
    tasks = site.submit(60)
    await asyncio.sleep(0.1)
    site.tell(leader, signal.SIGSTOP)
    load = asyncio.create_task(keep_submitting(site, tasks, 6.0))
    await site.until(lambda: "words" in getattr(site.roster.actors.get(site.other(leader)), "leads", []))
    await asyncio.sleep(0.5)
    site.tell(leader, signal.SIGCONT)
    await load
    texts = await asyncio.gather(*tasks)
    assert {text.split() == TEXT.split() for text in texts} == {True}
    assert max(site.attempts().values()) == 1, "an attempt was accepted from two leaders"
    await site.until(lambda: leader in site.roster.actors)
    assert site.leader() == site.other(leader), "the one that was frozen stands by"


async def test_a_dispatch_of_an_earlier_leader_is_refused_by_workers_that_never_ran_for_the_new_one(
    site: Site,
) -> None:
    leader = await site.led()
    await asyncio.gather(*site.submit(1))
    fence_before = 1
    await site.end(leader, signal.SIGTERM)
    await site.until(lambda: site.leader() == site.other(leader))
    bus, frames = await site.connect("ghost"), asyncio.Queue[Received]()
    await bus.subscribe(subjects.frames("ghost"), frames.put_nowait)
    for worker in ("w1", "w2"):
        late = Dispatch(
            request_id=f"late-{worker}",
            attempt=0,
            pool="words",
            reply_to=subjects.frames("ghost"),
            work=raw(WORK),
            fence=fence_before,
        )
        bus.publish(subjects.worker_dispatch(worker), encode(Dispatches(dispatches=[late])))
        frame = decode(Frame, (await asyncio.wait_for(frames.get(), 5)).payload)
        event = frame.deltas[0].event
        assert isinstance(event, Failed)
        assert event.error.code == "unavailable"
    assert not any(attempt.startswith("late-") for attempt in site.attempts())


async def test_a_leader_that_is_told_to_stop_hands_over_at_once(site: Site) -> None:
    leader = await site.led()
    tasks = site.submit(40)
    load = asyncio.create_task(keep_submitting(site, tasks, 2.0))
    await asyncio.sleep(0.2)
    site.tell(leader, signal.SIGTERM)
    took = await site.until(
        lambda: "words" in getattr(site.roster.actors.get(site.other(leader)), "leads", [])
    )
    assert took < TAKEOVER_SECONDS / 2
    await load
    texts = await asyncio.gather(*tasks)
    assert {text.split() == TEXT.split() for text in texts} == {True}
    assert max(site.attempts().values()) == 1
    assert "every command is the same" in await site.replay(leader)
