"""Requests over a real nats-server and the real scheduler: whatever is killed, the text is exact."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sage_actor import ActorRuntime, Roster
from sage_bus import Bus, connect
from sage_bus.testing import NatsServer
from sage_client import RequestPort, RequestStream, SyncInferenceClient
from sage_core import BusSettings, Cancelled
from sage_core.settings import ActorSettings
from sage_scheduler.actor import SchedulerActor
from sage_scheduler.settings import SchedulerSection, SchedulerSettings
from sage_wire import encode, subjects
from sage_wire.messages import Drain, Generate, TextPrompt, Tokens

pytestmark = pytest.mark.integration

SETTINGS = SchedulerSettings(scheduler=SchedulerSection(event_log=False))
WORKER = Path(__file__).parent / "word_worker.py"
TEXT = " ".join(f"w{index}" for index in range(60))
WORK = Generate(model="words", prompt=TextPrompt(text=TEXT))


class Site:
    """A server, a scheduler, a consumer, and worker processes."""

    def __init__(self, server: NatsServer, exits: AsyncExitStack) -> None:
        self.server = server
        self._exits = exits
        self.workers: dict[str, asyncio.subprocess.Process] = {}

    async def connect(self, name: str) -> Bus:
        bus = await connect(BusSettings(url=self.server.url), name=name)
        self._exits.push_async_callback(bus.close)
        return bus

    async def start(self) -> None:
        self.scheduler = await self.start_scheduler()
        self.roster = Roster(await self.connect("consumer-control"))
        await self.roster.start()
        self._exits.push_async_callback(self.roster.stop)
        self.port = RequestPort(await self.connect("consumer"), roster=self.roster)
        await self.port.start()
        self._exits.push_async_callback(self.port.close)

    async def start_scheduler(self, actor_id: str = "scheduler-1") -> ActorRuntime:
        runtime = ActorRuntime(
            lambda context: SchedulerActor(context, SETTINGS),
            actor_id=actor_id,
            kind="scheduler",
            bus=await self.connect(actor_id),
            control=await self.connect(f"{actor_id}-control"),
            settings=ActorSettings(announce_interval=0.1, drain_timeout=0.1),
        )
        await runtime.start()
        self._exits.push_async_callback(runtime.stop, False)
        return runtime

    async def start_worker(self, actor_id: str, seconds_per_word: float = 0.02) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), self.server.url, actor_id, str(seconds_per_word),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.workers[actor_id] = process
        self._exits.push_async_callback(self.kill, actor_id)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        async with asyncio.timeout(10):
            while not self.is_known(actor_id):  # noqa: ASYNC110 - the roster keeps no event of it
                await asyncio.sleep(0.01)

    def is_known(self, actor_id: str) -> bool:
        """Announced as ready, to us and so to the scheduler, which leads its pool."""
        announcement = self.roster.actors.get(actor_id)
        is_led = any("words" in actor.leads for actor in self.roster.actors.values())
        return is_led and announcement is not None and announcement.state == "ready"

    async def kill(self, actor_id: str) -> None:
        process = self.workers.pop(actor_id, None)
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with NatsServer() as server:
        async with AsyncExitStack() as exits:
            site = Site(server, exits)
            await site.start()
            yield site


async def first_words(stream: RequestStream, num_words: int) -> str:
    text = ""
    while len(text.split()) < num_words:
        event = await anext(stream)
        assert isinstance(event, Tokens)
        text += event.text
    return text


async def rest_of(stream: RequestStream) -> str:
    return "".join([event.text async for event in stream if isinstance(event, Tokens)])


async def test_kill_9_of_a_worker_mid_stream_gives_the_exact_text(site: Site) -> None:
    await site.start_worker("w1", 0.1)
    stream = site.port.submit("words", WORK, budget=30)
    text = await first_words(stream, 5)
    await site.start_worker("w2", 0.001)
    await site.kill("w1")
    text += await rest_of(stream)
    assert text.split() == TEXT.split()
    assert (stream.attempt, stream.worker_id) == (1, "w2")


async def test_a_restart_of_the_nats_server_mid_stream_gives_the_exact_text(site: Site) -> None:
    await site.start_worker("w1")
    streams = [site.port.submit("words", WORK, budget=60) for _ in range(4)]
    texts = [await first_words(stream, 3) for stream in streams]
    site.server.kill()
    site.server.start()
    for stream, text in zip(streams, texts, strict=True):
        assert (text + await rest_of(stream)).split() == TEXT.split()


async def test_a_scheduler_that_dies_costs_neither_what_runs_nor_what_comes(site: Site) -> None:
    await site.start_worker("w1")
    running = site.port.submit("words", WORK, budget=30)
    text = await first_words(running, 3)
    await site.scheduler.stop(drain=False)
    later = site.port.submit("words", WORK, budget=30)
    reading = asyncio.create_task(rest_of(later))
    await asyncio.sleep(0.05)
    await site.start_scheduler("scheduler-2")
    assert (text + await rest_of(running)).split() == TEXT.split()
    assert running.attempt == 0
    assert (await reading).split() == TEXT.split()
    assert later.attempt > 0


async def test_what_waits_in_a_scheduler_that_dies_is_resubmitted(site: Site) -> None:
    await site.start_worker("w1", 0.05)
    blocking = [site.port.submit("words", WORK, budget=30) for _ in range(64)]
    await asyncio.gather(*(first_words(stream, 1) for stream in blocking))
    waiting = site.port.submit("words", WORK, budget=30)
    reading = asyncio.create_task(rest_of(waiting))
    await asyncio.sleep(0.05)
    assert waiting.worker_id is None
    await site.scheduler.stop(drain=False)
    await site.start_scheduler("scheduler-2")
    for stream in blocking:
        stream.cancel()
    assert (await reading).split() == TEXT.split()


async def test_a_draining_worker_hands_over_and_nothing_fails(site: Site) -> None:
    await site.start_worker("w1", 0.1)
    streams = [site.port.submit("words", WORK, budget=60) for _ in range(4)]
    texts = [await first_words(stream, 2) for stream in streams]
    await site.start_worker("w2", 0.005)
    bus = await site.connect("operator")
    await bus.request(subjects.actor("w1", "drain"), encode(Drain(timeout_ms=100)), timeout=2.0)
    for stream, text in zip(streams, texts, strict=True):
        assert (text + await rest_of(stream)).split() == TEXT.split()
        assert stream.worker_id == "w2"
    assert await site.workers["w1"].wait() == 0


async def test_a_cancel_frees_the_worker_within_200_ms(site: Site) -> None:
    await site.start_worker("w1")
    stream = site.port.submit("words", WORK, budget=30)
    await first_words(stream, 2)
    stream.cancel()
    started = asyncio.get_running_loop().time()
    with pytest.raises(Cancelled):
        await rest_of(stream)
    while site.roster.actors["w1"].in_flight:  # noqa: ASYNC110 - the roster keeps no event of it
        await asyncio.sleep(0.01)
    assert asyncio.get_running_loop().time() - started < 0.2 + 0.1


async def test_the_blocking_client_does_what_the_other_does(site: Site) -> None:
    await site.start_worker("w1", 0.001)

    def use() -> tuple[str, list[str], str]:
        with SyncInferenceClient(site.server.url) as client:
            answer = client.chat("auto", "one two three")
            streamed = [
                event.text for event in client.stream_chat("words", "a b") if isinstance(event, Tokens)
            ]
            leaving = client.stream_chat("words", TEXT)
            first = next(iter(leaving))
            assert isinstance(first, Tokens)
            return answer.text, streamed, first.text

    assert await asyncio.to_thread(use) == ("one two three ", ["a ", "b "], "w0 ")
