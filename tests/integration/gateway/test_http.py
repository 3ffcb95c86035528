"""A real gateway on a real socket, with the `openai` client and with connections that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import openai
import pytest

from gateway_peers import Backend, raw_connection
from sage_actor import ActorRuntime
from sage_bus import MemoryBroker
from sage_core import ConfigurationError
from sage_core.settings import ActorSettings
from sage_gateway import GatewayActor, GatewaySection, GatewaySettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

START = Callable[..., Awaitable["Running"]]


class Running:
    def __init__(self, runtime: ActorRuntime, backend: Backend) -> None:
        self.runtime, self.backend = runtime, backend
        assert isinstance(runtime.actor, GatewayActor)
        self.port = runtime.actor.port
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.AsyncOpenAI:
        http = httpx.AsyncClient(trust_env=False)
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0, http_client=http)


@pytest.fixture
async def start() -> AsyncIterator[START]:
    async with contextlib.AsyncExitStack() as stack:

        async def started(**section: Any) -> Running:
            broker = MemoryBroker()
            backend = Backend(broker)
            await backend.start()
            stack.push_async_callback(backend.stop)
            settings = GatewaySettings(gateway=GatewaySection(**{"port": 0, **section}))
            runtime = ActorRuntime(
                lambda context: GatewayActor(context, settings),
                actor_id="gateway-1",
                bus=broker.connect("data"),
                control=broker.connect("control"),
                settings=ActorSettings(),
                kind="gateway",
            )
            await runtime.start()
            stack.push_async_callback(runtime.stop, drain=False)
            running = Running(runtime, backend)
            await until_seen(f"{running.url}/readyz", '"ready"')
            return running

        yield started


async def until_seen(url: str, text: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        while text not in (await client.get(url)).text:  # noqa: ASYNC110 - seen only from outside, by asking
            await asyncio.sleep(0.01)


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


async def test_the_openai_client_is_served_by_every_route(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client:
        chat = await client.chat.completions.create(model="auto", messages=user("count 3"))
        assert chat.choices[0].message.content == " 0 1 2"
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 3
        completion = await client.completions.create(model="tiny", prompt=["a", "b"])
        assert [choice.text for choice in completion.choices] == ["completion", "completion"]
        embeddings = await client.embeddings.create(model="mini", input=["a", "bbb"])
        assert [item.embedding[0] for item in embeddings.data] == [1.0, 3.0]
        assert [model.id async for model in client.models.list()] == ["tiny", "mini", "pipeline/rag-docs"]
        assert (await client.models.retrieve("pipeline/rag-docs")).id == "pipeline/rag-docs"
        piped = await client.chat.completions.create(model="pipeline/rag-docs", messages=user("hello"))
        assert piped.choices[0].message.content == "hello"


async def test_the_openai_client_reads_streams_to_their_end(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=user("count 200"), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "".join(f" {number}" for number in range(200))
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 200


async def test_a_hundred_streams_at_once_do_not_mix(start: START) -> None:
    gateway = await start()

    async def ask(client: openai.AsyncOpenAI, number: int) -> None:
        stream = await client.chat.completions.create(
            model="tiny", messages=user(f"question-{number}"), stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == f"question-{number}"

    async with gateway.client() as client, asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(ask(client, number))
    assert len({submit.request_id for submit in gateway.backend.submitted}) == 100


async def test_the_openai_client_raises_its_own_errors(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody", messages=user("x"))
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="tiny", messages=user("x"), temperature=3)
        assert refused.value.param == "temperature"
        gateway.backend.is_full = True
        with pytest.raises(openai.RateLimitError) as full:
            await client.chat.completions.create(model="tiny", messages=user("x"), stream=True)
        assert full.value.response.headers["retry-after"] == "3"


async def test_a_client_that_hangs_up_cancels_at_the_worker(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client:
        stream = await client.chat.completions.create(model="tiny", messages=user("wait"), stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await asyncio.wait_for(gateway.backend.saw_cancel(), 5)
        assert gateway.backend.cancelled[0] == chunk.id


async def test_a_client_that_hangs_up_without_streaming_cancels_too(start: START) -> None:
    gateway = await start()
    body = json.dumps({"model": "tiny", "messages": user("wait")}).encode()
    async with raw_connection(gateway.port) as (_, writer):
        writer.write(request(body))
        await gateway.backend.saw_submit()
    await asyncio.wait_for(gateway.backend.saw_cancel(), 5)
    assert gateway.backend.cancelled[0] == gateway.backend.submitted[0].request_id


async def test_a_stream_is_cancelled_by_id_from_another_connection(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client, httpx.AsyncClient(trust_env=False) as other:
        stream = await client.chat.completions.create(model="tiny", messages=user("wait"), stream=True)
        seen = stream.__aiter__()
        chunk = await anext(seen)
        assert (await other.delete(f"{gateway.url}/v1/requests/{chunk.id}")).status_code == 200

        async def rest() -> None:
            async for _ in seen:
                pass

        with pytest.raises(openai.APIError, match="cancelled by id"):
            await rest()


async def test_a_client_that_stops_reading_is_cut_off(start: START) -> None:
    gateway = await start(stall_timeout=0.3)
    body = json.dumps({"model": "tiny", "messages": user("big"), "stream": True}).encode()
    async with raw_connection(gateway.port, receive_buffer=4096) as (reader, writer):
        writer.write(request(body))
        await reader.readline()
        await asyncio.wait_for(gateway.backend.saw_cancel(), 10)
        await asyncio.wait_for(until_seen(f"{gateway.url}/metrics", "sage_gateway_in_flight 0.0"), 5)


async def test_a_slow_reader_gets_all_of_its_stream(start: START) -> None:
    gateway = await start(max_backlog="64MiB", stall_timeout=5)
    body = json.dumps({"model": "tiny", "messages": user("count 20000"), "stream": True}).encode()
    async with raw_connection(gateway.port, receive_buffer=4096) as (reader, writer):
        writer.write(request(body))
        raw = b""
        while not raw.endswith(b"0\r\n\r\n"):
            if len(raw) < 50_000:
                await asyncio.sleep(0.02)
            raw += await asyncio.wait_for(reader.read(4096 if len(raw) < 50_000 else 2**20), 10)
    assert raw.count(b'"finish_reason":"') == 1
    assert b'" 19999"' in raw


def request(body: bytes, head: bytes = b"") -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n%b"
        % (len(body), head, body)
    )  # fmt: skip


async def one_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one answer that says its length; return its head and body."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    (length,) = [int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
    return head, await asyncio.wait_for(reader.readexactly(length), 5)


async def answer_to(gateway: Running, *parts: bytes) -> tuple[bytes, dict[str, Any]]:
    """Send `parts` on one connection; return the status line and error of what comes until the server closes it."""
    async with raw_connection(gateway.port) as (reader, writer):
        for part in parts:
            writer.write(part)
        raw = await asyncio.wait_for(reader.read(65536), 5)
        head, _, body = raw.partition(b"\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        error: dict[str, Any] = json.loads(body)["error"]
        return head.split(b"\r\n")[0], error


async def test_what_is_not_http_is_refused_in_json(start: START) -> None:
    status, error = await answer_to(await start(), b"\x16\x03\x01 hello\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 400")
    assert error["code"] == "invalid_http"


async def test_headers_without_end_are_refused(start: START) -> None:
    gateway = await start(max_header_bytes=2048)
    parts = [b"GET / HTTP/1.1\r\n", *[b"x-%d: %b\r\n" % (number, b"y" * 100) for number in range(50)]]
    status, error = await answer_to(gateway, b"".join(parts))
    assert status.startswith(b"HTTP/1.1 431")
    assert error["code"] == "headers_too_large"


@pytest.mark.parametrize("num_bytes", [33_000, 60_000, 110_000, 130_000, 1_000_000])
async def test_headers_that_end_are_bounded_too(start: START, num_bytes: int) -> None:
    head = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: %b\r\n\r\n" % (b"y" * num_bytes)
    status, error = await answer_to(await start(), head)
    assert status.startswith(b"HTTP/1.1 431")
    assert error["code"] == "headers_too_large"


async def test_the_limit_of_headers_counts_neither_bodies_nor_the_requests_before(start: START) -> None:
    gateway = await start(max_header_bytes=1024)
    request = b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\nx: %b\r\ncontent-length: 5000\r\n\r\n%b" % (
        b"y" * 800,
        b"z" * 5000,
    )
    async with raw_connection(gateway.port) as (reader, writer):
        for _ in range(3):
            writer.write(request)
            head, _ = await one_answer(reader)
            assert head.startswith(b"HTTP/1.1 404")


async def test_headers_that_trickle_are_refused(start: START) -> None:
    status, _ = await answer_to(await start(header_timeout=0.1), b"GET / HTTP/1.1\r\nx: ")
    assert status.startswith(b"HTTP/1.1 408")


async def test_a_second_request_that_trickles_is_refused_too(start: START) -> None:
    gateway = await start(header_timeout=0.2)
    async with raw_connection(gateway.port) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"}")
        writer.write(b"GET /healthz HTTP/1.1\r\nx: ")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 408")


async def test_a_connection_that_never_speaks_is_closed(start: START) -> None:
    gateway = await start(header_timeout=0.1)
    async with raw_connection(gateway.port) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_body_that_trickles_is_refused(start: START) -> None:
    gateway = await start(body_timeout=0.1)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    status, error = await answer_to(gateway, head)
    assert status.startswith(b"HTTP/1.1 408")
    assert error["code"] == "body_timeout"


async def test_an_oversized_body_is_refused_and_the_connection_stays_usable(start: START) -> None:
    gateway = await start(max_body=65536)
    async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=1)) as client:
        large = await client.post(f"{gateway.url}/v1/chat/completions", content=b"x" * 500_000)
        assert large.status_code == 413
        assert large.json()["error"]["code"] == "body_too_large"
        assert (await client.get(f"{gateway.url}/healthz")).status_code == 200
        assert gateway.backend.submitted == []


async def test_an_endless_body_is_refused_unread(start: START) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    status, _ = await answer_to(await start(), head)
    assert status.startswith(b"HTTP/1.1 413")


async def test_more_connections_than_allowed_are_refused_in_json(start: START) -> None:
    gateway = await start(max_connections=2)
    async with raw_connection(gateway.port), raw_connection(gateway.port):
        status, error = await answer_to(gateway)
        assert status.startswith(b"HTTP/1.1 503")
        assert error["code"] == "too_many_connections"


async def test_an_offered_upgrade_is_declined_and_the_body_is_kept(start: START) -> None:
    gateway = await start()
    body = json.dumps({"model": "tiny", "messages": user("hello")}).encode()
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    async with raw_connection(gateway.port) as (reader, writer):
        for _ in range(2):
            raw = request(body, upgrade)
            writer.write(raw[:-20])
            await asyncio.sleep(0.02)
            writer.write(raw[-20:])
            head, answer = await one_answer(reader)
            assert head.startswith(b"HTTP/1.1 200")
            assert b"hello" in answer
        writer.write(request(body))
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")


async def test_head_has_no_body(start: START) -> None:
    gateway = await start()
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.head(f"{gateway.url}/healthz")
    assert (reply.status_code, reply.content) == (200, b"")


async def test_a_drain_lets_streams_finish_and_takes_no_new_connections(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client:
        stream = await client.chat.completions.create(model="tiny", messages=user("count 2000"), stream=True)
        seen = stream.__aiter__()
        await anext(seen)
        stopping = asyncio.create_task(gateway.runtime.stop())
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in seen])
        assert text.endswith(" 1999")
    await asyncio.wait_for(stopping, 10)
    async with httpx.AsyncClient(trust_env=False) as late:
        with pytest.raises(httpx.ConnectError):
            await late.get(f"{gateway.url}/healthz")


async def test_a_stop_that_cannot_wait_tells_the_client(start: START) -> None:
    gateway = await start()
    async with gateway.client() as client:
        stream = await client.chat.completions.create(model="tiny", messages=user("wait"), stream=True)
        seen = stream.__aiter__()
        await anext(seen)

        async def rest() -> None:
            async for _ in seen:
                pass

        reading = asyncio.create_task(rest())
        await asyncio.wait_for(gateway.runtime.stop(drain=False), 10)
        with pytest.raises(openai.APIError, match="shutting down"):
            await reading
    assert gateway.backend.cancelled


async def test_a_taken_port_is_a_configuration_error_that_names_it(start: START) -> None:
    gateway = await start()
    with pytest.raises(ConfigurationError, match=str(gateway.port)):
        await start(port=gateway.port)


async def test_a_stopped_gateway_frees_its_port(start: START) -> None:
    gateway = await start()
    await gateway.runtime.stop(drain=False)
    again = await start(port=gateway.port)
    assert again.port == gateway.port


async def test_many_clients_may_come_at_the_same_moment(start: START) -> None:
    running = await start()
    with contextlib.ExitStack() as stack:
        # Nothing is accepted while these calls hold the event loop, so the kernel has to keep all of them.
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=0.5))
