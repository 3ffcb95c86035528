"""The benchmark's tools tell the truth: the mock pool speaks as a worker does, the client counts what came."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sage_actor import Roster
from sage_bus import connect
from sage_bus.testing import NatsServer, free_port
from sage_client import RequestPort
from sage_core import BusSettings, Cancelled
from sage_wire.messages import (
    Completed,
    Embed,
    Event,
    Generate,
    Sampling,
    TextPrompt,
    Tokens,
    Vectors,
    Work,
)

pytestmark = pytest.mark.integration

PEERS = Path(__file__).parents[3] / "loadtests" / "peers"
MODEL = "mock-model"


@pytest.fixture(scope="module")
def tools() -> Iterator[Path]:
    sys.path.insert(0, str(PEERS))
    from ground import build_tools

    yield build_tools()
    sys.path.remove(str(PEERS))


@pytest.fixture
async def port(tools: Path) -> AsyncIterator[RequestPort]:
    """A consumer in front of a mock pool."""
    with NatsServer() as server:
        bus = await connect(BusSettings(url=server.url), name="consumer")
        roster = Roster(bus)
        both_known = asyncio.Event()
        roster.subscribe(lambda _: both_known.set() if len(roster.actors) == 2 else None)
        options = ("--port", str(server.port), "--model", MODEL, "--dim", "4")
        process = await asyncio.create_subprocess_exec(tools / "mock_pool", *options)
        try:
            await roster.start()
            await asyncio.wait_for(both_known.wait(), 5)
            port = RequestPort(bus, roster=roster)
            await port.start()
            yield port
            await port.close()
        finally:
            process.kill()
            await process.wait()
            await roster.stop()
            await bus.close()


def generate(num_tokens: int, **more: int) -> Generate:
    return Generate(
        model=MODEL, prompt=TextPrompt(text="hello"), sampling=Sampling(max_tokens=num_tokens), **more
    )


async def events(port: RequestPort, work: Work) -> list[Event]:
    return [event async for event in port.submit(MODEL, work, budget=5.0)]


async def test_the_mock_pool_is_known_as_scheduler_and_worker_of_its_model(port):
    actors = port._roster.actors
    assert {(actor.kind, tuple(actor.leads)) for actor in actors.values()} == {
        ("scheduler", (MODEL,)),
        ("llm-worker", ()),
    }
    assert {model.task for actor in actors.values() for model in actor.models} == {"generate", "embed"}


async def test_a_stream_has_one_stamped_token_per_event_and_its_usage(port):
    before = time.monotonic_ns()
    *tokens, last = await events(port, generate(5))
    after = time.monotonic_ns()
    assert [type(event) for event in tokens] == [Tokens] * 5
    assert isinstance(last, Completed)
    assert last.usage.completion_tokens == 5
    stamps = [int(token.text[2:18], 16) for token in tokens]
    received = int(tokens[0].text[19:35], 16)
    assert before < received <= stamps[0]
    assert sorted(stamps) == stamps
    assert stamps[-1] < after


async def test_a_gathered_answer_comes_in_one_piece(port):
    tokens, last = await events(port, generate(16, gather_ms=250))
    assert isinstance(tokens, Tokens)
    assert (tokens.num_tokens, len(tokens.token_ids)) == (16, 16)
    assert isinstance(last, Completed)


async def test_embeddings_have_a_vector_per_text(port):
    vectors, last = await events(port, Embed(model=MODEL, texts=["a", "b", "c"]))
    assert isinstance(vectors, Vectors)
    assert (vectors.dim, len(vectors.data)) == (4, 3 * 4 * 4)
    assert isinstance(last, Completed)


async def test_a_pace_is_kept_and_a_cancelled_stream_is_dropped(port):
    port._bus.publish("bench.pace", b"itl_us=20000 ttft_us=0")
    started = time.monotonic()
    await events(port, generate(5))
    assert time.monotonic() - started > 0.08
    stream = port.submit(MODEL, generate(1000), budget=5.0)
    await anext(stream)
    stream.cancel("enough")
    with pytest.raises(Cancelled):
        async for _ in stream:
            pass


@pytest.fixture
def engine_port(tools: Path) -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([tools / "mock_engine", "--port", str(port)])
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    yield port
    process.kill()
    process.wait()


def load(tools: Path, port: int, body: dict[str, object], tmp_path: Path, *options: str) -> dict[str, object]:
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    command = [
        tools / "load",
        "--port",
        str(port),
        "--body",
        file,
        "--duration",
        "0.3",
        "--warmup",
        "0.1",
        *options,
    ]
    seen: dict[str, object] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return seen


CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def test_the_client_finds_every_whole_answer_good(tools, engine_port, tmp_path):
    seen = load(tools, engine_port, CHAT, tmp_path, "--path", "/v1/chat/completions", "-c", "4")
    assert seen["good"] > 10
    assert (seen["failed"], seen["wrong"]) == (0, 0)
    assert seen["added_us"]["num"] == seen["good"]


def test_the_client_counts_the_tokens_of_streams_and_finds_a_short_one_wrong(tools, engine_port, tmp_path):
    options = ("--path", "/v1/chat/completions", "-c", "4", "--stream", "--tokens")
    seen = load(tools, engine_port, CHAT | {"stream": True}, tmp_path, *options, "4")
    assert seen["good"] > 10
    assert seen["wrong"] == 0
    assert 3 * seen["good"] < seen["all_tokens"]
    seen = load(tools, engine_port, CHAT | {"stream": True}, tmp_path, *options, "5")
    assert seen["wrong"] == seen["good"] > 10


def test_the_client_names_the_status_of_a_refusal(tools, engine_port, tmp_path):
    seen = load(tools, engine_port, CHAT, tmp_path, "--path", "/v1/nothing")
    assert seen["good"] == 0
    assert seen["failed"] > 0
    assert "status 404" in seen["error"]


def test_an_open_loop_sends_at_its_rate_and_counts_from_the_due_time(tools, engine_port, tmp_path):
    options = ("--path", "/v1/chat/completions", "-c", "8", "--rate", "200")
    seen = load(tools, engine_port, CHAT, tmp_path, *options)
    assert 40 <= seen["good"] <= 62
    assert seen["latency_us"]["p50"] > 0
