"""What one chat costs the gateway, counted instead of timed: writes, messages, tasks, calls, objects left behind.

The whole path is real but for the socket and the bus: connection, access, operation, request port, codec. Counts are
the same on every machine, so a change that makes requests dearer fails here without a benchmark. The limits of calls
are a tenth above what is needed today; raise one only with a reason.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from gateway_driver import Client, Gateway, write_keys
from sage_bus import BusEvent, Received
from sage_bus.bus import NO_HEADERS
from sage_client import RequestPort
from sage_core import SystemClock
from sage_wire import decode, encode, subjects
from sage_wire.messages import Completed, Delta, Event, Frame, ServedModel, Started, Submits, Tokens, Usage

MODEL = ServedModel(name="tiny", task="generate")
NUM_TOKENS = 16
BODY = (
    b'{"model": "tiny", "max_tokens": 16, "messages": [{"role": "system", "content": "%b"}, '
    b'{"role": "user", "content": "%b"}]%b}'
)
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"authorization: Bearer sk-1\r\n"
)

MAX_CALLS_WHOLE = 335
MAX_CALLS_PER_TOKEN = 40
MAX_BLOCKS_LEFT = 8
"""The entries of its two alarms stay for a second: a tuple, a number and an identity each."""
MAX_CYCLIC = 0.5


def request(*, is_streamed: bool) -> bytes:
    body = BODY % (
        b"You are terse. " * 20,
        b"Hello there! " * 40,
        b', "stream": true' if is_streamed else b"",
    )
    return HEAD + b"content-length: %d\r\n\r\n%b" % (len(body), body)


class CountingBus:
    """Counts what is published; its one subscriber is told what a worker would say."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.heard: Callable[[Received], None] | None = None

    def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] = NO_HEADERS, **options: Any
    ) -> None:
        self.published.append((subject, payload))

    def soon(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    async def subscribe(self, subject: str, callback: Callable[[Received], None]) -> CountingBus:
        self.heard = callback
        return self

    async def unsubscribe(self) -> None:
        self.heard = None

    def on_event(self, listener: Callable[[BusEvent, str], None]) -> None:
        pass

    def say(self, *deltas: Delta) -> None:
        assert self.heard is not None
        subject = subjects.frames("gateway")
        self.heard(Received(subject=subject, payload=encode(Frame(deltas=list(deltas))), headers=NO_HEADERS))


class Bench:
    """A gateway on a counting bus, and connections to it."""

    def __init__(self, keys_file: Path) -> None:
        self.gateway = Gateway(models=[MODEL], keys_file=keys_file)
        self.gateway.edge.clock = SystemClock()
        self.gateway.catalog.update("w-1", "llm-worker", [MODEL], self.gateway.edge.clock.now())
        self.bus = CountingBus()
        self.port = RequestPort(self.bus, consumer_id="gateway")  # type: ignore[arg-type]  # what the port uses of it
        self.gateway.edge.port = self.port
        self.tasks: list[str] = []
        self._raw = {is_streamed: request(is_streamed=is_streamed) for is_streamed in (False, True)}

    async def submit(self, client: Client, *, is_streamed: bool) -> str:
        """Send a chat; return its request id once it has been submitted."""
        self.bus.published.clear()
        client.send(self._raw[is_streamed])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ((subject, payload),) = self.bus.published
        assert subject == subjects.pool_submit("tiny")
        (submit,) = decode(Submits, payload).submits
        return submit.request_id

    async def whole(self, client: Client) -> None:
        request_id = await self.submit(client, is_streamed=False)
        self.bus.say(*deltas(request_id, 0, STARTED, GATHERED, DONE))

    async def streamed(self, client: Client, num_tokens: int) -> None:
        request_id = await self.submit(client, is_streamed=True)
        self.bus.say(*deltas(request_id, 0, STARTED))
        for number in range(num_tokens):
            self.bus.say(*deltas(request_id, number + 1, TOKEN))
            await asyncio.sleep(0)
        self.bus.say(*deltas(request_id, num_tokens + 1, DONE))

    def count_tasks(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        if not coroutine.__qualname__.startswith("test_"):
            self.tasks.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)


STARTED = Started(worker_id="w-1", model="tiny")
TOKEN = Tokens(text=" word", token_ids=[7])
GATHERED = Tokens(text=" word" * NUM_TOKENS, token_ids=[7] * NUM_TOKENS, num_tokens=NUM_TOKENS)
"""What a worker sends for an answer that nobody reads before its end; see `Generate.gather_ms`."""
DONE = Completed(finish_reason="length", usage=Usage(prompt_tokens=200, completion_tokens=NUM_TOKENS))


def deltas(request_id: str, seq: int, *events: Event) -> list[Delta]:
    return [
        Delta(request_id=request_id, attempt=0, seq=seq + number, event=event)
        for number, event in enumerate(events)
    ]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(write_keys(tmp_path, mine="sk-1"))
    await made.port.start()
    loop = asyncio.get_running_loop()
    loop.set_task_factory(made.count_tasks)  # type: ignore[arg-type]  # the stub's factory returns any future
    yield made
    loop.set_task_factory(None)
    await made.port.close()


async def test_a_whole_chat_is_one_write_one_message_and_no_task(bench: Bench) -> None:
    client = bench.gateway.connect()
    for _ in range(3):
        await bench.whole(client)
    assert len(client.writes) == 3
    assert len(bench.bus.published) == 1
    assert bench.tasks == []
    assert client.writes[-1].startswith(b"HTTP/1.1 200 OK\r\n")
    assert b" word word" in client.writes[-1]


async def test_chats_of_one_turn_are_one_message_and_one_write_each(bench: Bench) -> None:
    clients = [bench.gateway.connect() for _ in range(8)]
    for client in clients:
        client.send(request(is_streamed=False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ((_, payload),) = bench.bus.published
    ids = [submit.request_id for submit in decode(Submits, payload).submits]
    assert len(ids) == 8
    bench.bus.say(*[each for request_id in ids for each in deltas(request_id, 0, STARTED, DONE)])
    assert [len(client.writes) for client in clients] == [1] * 8
    assert bench.tasks == []


async def test_a_stream_is_one_write_per_turn_and_no_task(bench: Bench) -> None:
    client = bench.gateway.connect()
    await bench.streamed(client, 10)
    # The end comes with what the last turn has left to say.
    assert len(client.writes) == 11
    assert bench.tasks == []
    assert client.writes[-1].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_frames_of_one_turn_are_one_write(bench: Bench) -> None:
    client = bench.gateway.connect()
    request_id = await bench.submit(client, is_streamed=True)
    bench.bus.say(*deltas(request_id, 0, STARTED))
    for number in range(10):
        bench.bus.say(*deltas(request_id, number + 1, TOKEN))
    await asyncio.sleep(0)
    assert len(client.writes) == 1


class Calls:
    """Counts the calls that SAGE's own functions take and make, Python's and C's, within the block."""

    def __enter__(self) -> Calls:
        self.num = 0
        sys.setprofile(self._count)
        return self

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call") and frame.f_globals["__name__"].startswith("sage_"):
            self.num += 1

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


async def test_a_whole_chat_takes_a_bounded_number_of_calls(bench: Bench) -> None:
    client = bench.gateway.connect()
    for _ in range(5):
        await bench.whole(client)
    with Calls() as calls:
        for _ in range(10):
            await bench.whole(client)
    assert calls.num / 10 <= MAX_CALLS_WHOLE


async def test_a_token_of_a_stream_takes_a_bounded_number_of_calls(bench: Bench) -> None:
    client = bench.gateway.connect()
    await bench.streamed(client, 10)
    with Calls() as few:
        await bench.streamed(client, 10)
    with Calls() as many:
        await bench.streamed(client, 110)
    assert (many.num - few.num) / 100 <= MAX_CALLS_PER_TOKEN


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_finished_chat_leaves_neither_objects_nor_cycles(bench: Bench, is_streamed: bool) -> None:
    client = bench.gateway.connect()

    async def some(number: int) -> None:
        for _ in range(number):
            if is_streamed:
                await bench.streamed(client, 5)
            else:
                await bench.whole(client)
            client.transport.writes.clear()
            client.transport.received = b""

    await some(300)
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        await some(300)
        left = sys.getallocatedblocks() - before
        num_cyclic = gc.collect()
    finally:
        gc.enable()
    assert left / 300 <= MAX_BLOCKS_LEFT
    assert num_cyclic / 300 <= MAX_CYCLIC
