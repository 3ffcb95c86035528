"""Drives the gateway without a network: a port whose answers tests decide, a client that can misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sage_bus import Bus, MemoryBroker
from sage_client import RequestSink
from sage_core import Cancelled, FakeClock
from sage_gateway import App, Catalog, Edge, GatewaySection, InFlight
from sage_gateway.access import Gate
from sage_gateway.cancelling import Cancelling
from sage_gateway.http import HttpServer
from sage_gateway.responses import ResponseRoutes
from sage_gateway.routes import Route
from sage_gateway.table import route_table
from sage_wire.messages import Completed, Event, ServedModel, Targets, Tokens, Usage, Work

MODELS = (
    ServedModel(name="tiny", task="generate", engine="emulated", max_context=2048),
    ServedModel(name="mini", task="embed", dim=4),
    ServedModel(name="mini", task="rerank"),
    ServedModel(name="pipeline/rag-docs", task="pipeline", description="answers from documents"),
    ServedModel(name="operator/split", task="operator"),
)
HELLO: tuple[Event, ...] = (
    Tokens(text="Hello"),
    Tokens(text=" world"),
    Completed(finish_reason="stop", usage=Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)),
)


class FakeStream:
    """One work that was opened, and its sink; events are what the test pushes."""

    def __init__(self, pool: str, work: Work, sink: RequestSink, options: dict[str, Any]) -> None:
        self.pool, self.work, self.sink = pool, work, sink
        self.request_id: str = options["request_id"]
        self.tenant: str = options["tenant"]
        self.slo_class: str = options["slo_class"]
        self.targets: Targets = options["targets"]
        self.route: str = options["route"]
        self.budget_seconds: float = options["budget"]
        self.traceparent: str | None = options["traceparent"]
        self.worker_id: str | None = None
        self.cancel_reason: str | None = None
        self.is_finished = False

    def push(self, *events: Event) -> None:
        """Deliver `events` as one frame does."""
        if self.is_finished:
            return
        self.worker_id = "worker-1"
        self.is_finished = isinstance(events[-1], Completed)
        self.sink.deliver(list(events))
        if self.is_finished:
            self.sink.finish(None)

    def fail(self, error: Exception) -> None:
        if not self.is_finished:
            self.is_finished = True
            self.sink.finish(error)  # type: ignore[arg-type]  # also what a bug would raise

    def cancel(self, reason: str = "cancelled by the caller") -> None:
        if not self.is_finished:
            self.cancel_reason = reason
            self.fail(Cancelled(reason))


class FakePort:
    """A `WorkPort`. `answer(stream)` runs soon after every `open`; by default nothing is answered."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.answer: Callable[[FakeStream], None] = lambda stream: None
        self._submitted = asyncio.Event()

    def answer_with(self, *events: Event) -> None:
        self.answer = lambda stream: stream.push(*events)

    def fail_with(self, error: Exception) -> None:
        self.answer = lambda stream: stream.fail(error)

    def open(self, pool: str, work: Work, sink: RequestSink, **options: Any) -> FakeStream:
        stream = FakeStream(pool, work, sink, options)
        self.streams.append(stream)
        asyncio.get_running_loop().call_soon(self.answer, stream)
        self._submitted.set()
        return stream

    async def next_stream(self) -> FakeStream:
        """Wait for the next work that is opened."""
        await self._submitted.wait()
        self._submitted.clear()
        return self.streams[-1]


@dataclass
class Reply:
    """A finished response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[Any]:
        """The data events of a stream, decoded; `[DONE]` stays text."""
        assert self.headers["content-type"].startswith("text/event-stream")
        assert self.body.endswith(b"\n\n")
        lines = [line for line in self.body.decode().split("\n\n") if line and not line.startswith(":")]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]

    @property
    def num_comments(self) -> int:
        return self.body.count(b": keep-alive\n\n")


class FakeTransport(asyncio.Transport):
    """A socket of which the test decides how much its peer takes. `writes` is what each call handed over."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.writes: list[bytes] = []
        self.received = b""
        self.is_aborted = False
        self.is_reading = True
        self.has_sent_eof = False
        self.progress = asyncio.Event()
        self._is_taking = True
        self._is_paused = False
        self._is_closing = False
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_sent_eof
        self.writes.append(bytes(data))
        self._unsent.append(bytes(data))
        self._flush()
        if self._unsent and not self._is_paused:
            self._is_paused = True
            self.protocol.pause_writing()

    def writelines(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(parts))

    def take(self, *, is_taking: bool) -> None:
        """Let the peer read, or stop reading."""
        self._is_taking = is_taking
        self._flush()
        if not self._unsent and self._is_paused:
            self._is_paused = False
            self.protocol.resume_writing()

    def _flush(self) -> None:
        if self._is_taking and self._unsent:
            self.received += b"".join(self._unsent)
            self._unsent.clear()
            self.progress.set()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._unsent))

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_sent_eof = True
        self.progress.set()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._loop.call_soon(self.lose)

    def abort(self) -> None:
        self.is_aborted = True
        self.close()

    def lose(self) -> None:
        """The connection is gone, whoever ended it."""
        self._is_closing = True
        if not self.is_lost:
            self.is_lost = True
            self.protocol.connection_lost(None)
            self.progress.set()

    is_lost = False


class Client:
    """One connection with one request in it, to the real protocol. It reads at once unless told otherwise."""

    def __init__(self, server: HttpServer) -> None:
        self._protocol = server.connect()
        self.transport = FakeTransport(self._protocol)
        self._protocol.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        """Let `data` arrive at the server."""
        if not self.transport.is_closing():
            self._protocol.data_received(data)

    def disconnect(self) -> None:
        """Hang up."""
        self.transport.lose()

    def half_close(self) -> bool:
        """End the sending side; True where the server keeps its own open."""
        return bool(self._protocol.eof_received())

    @property
    def is_aborted(self) -> bool:
        return self.transport.is_aborted

    @property
    def writes(self) -> list[bytes]:
        return self.transport.writes

    async def reply(self) -> Reply:
        """Wait for the end of the answer."""
        while not (seen := _parsed(self.transport.received)).is_whole:
            await self._more(f"an answer; so far {self.transport.received[-200:]!r}")
        return seen.reply

    def seen(self) -> Reply:
        """What has arrived so far."""
        return _parsed(self.transport.received).reply

    async def has_seen(self, text: bytes, times: int = 1) -> None:
        """Wait until `text` has arrived, so many times."""
        while self.transport.received.count(text) < times:
            await self._more(repr(text))

    async def is_left(self) -> None:
        """Wait until the server has let go of the connection."""
        while not self.transport.is_lost:
            self.transport.progress.clear()
            await self.transport.progress.wait()

    async def _more(self, what: str) -> None:
        assert not self.transport.is_lost, f"the connection ended before {what}"
        self.transport.progress.clear()
        await self.transport.progress.wait()


@dataclass
class _Parsed:
    reply: Reply
    is_whole: bool


def _parsed(raw: bytes) -> _Parsed:
    """Read the first answer of `raw`, as far as it is there."""
    head, found, rest = raw.partition(b"\r\n\r\n")
    if not found:
        return _Parsed(Reply(0, {}, b""), is_whole=False)
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        assert name not in headers, f"{name} was sent twice"
        headers[name] = value
    status = int(status_line.split(" ")[1])
    assert status_line.startswith("HTTP/1.1 ")
    if headers.get("transfer-encoding") == "chunked":
        body, is_whole = _unchunked(rest)
        return _Parsed(Reply(status, headers, body), is_whole)
    length = int(headers.get("content-length", "0"))
    assert len(rest) <= length, f"more than one answer: {rest[length:]!r}"
    return _Parsed(Reply(status, headers, rest), len(rest) == length)


def _unchunked(raw: bytes) -> tuple[bytes, bool]:
    body = b""
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        body += raw[:length]
        assert raw[length : length + 2] == b"\r\n"
        raw = raw[length + 2 :]
        if length == 0:
            assert raw == b""
            return body, True
    return body, False


class Gateway:
    """An application on a real server without sockets, with everything around it in the test's hands.

    `routes` are served beside the gateway's own; `headers` go with every request.
    """

    def __init__(
        self,
        models: Sequence[ServedModel] = MODELS,
        *,
        bus: Bus | None = None,
        routes: Sequence[Route] = (),
        headers: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.headers = {"host": "127.0.0.1:8080"} | dict(headers or {})
        self.port = FakePort()
        self.clock = FakeClock(100.0)
        section = GatewaySection(**settings)
        self.catalog = Catalog(section.remember_models)
        if models:
            self.catalog.update("worker-1", "llm-worker", models, self.clock.now())
        self.in_flight = InFlight(section.max_in_flight)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.gate = Gate(section, clock=self.clock, bus=bus or MemoryBroker().connect("control"))
        self.edge = Edge(
            settings=section,
            clock=self.clock,
            port=self.port,
            catalog=self.catalog,
            in_flight=self.in_flight,
            gate=self.gate,
            spawn=self._spawn,
            sample_ratio=0.0,
        )
        data = bus or MemoryBroker().connect("data")
        self.responses = ResponseRoutes(section, data)
        self.routes = route_table(self.edge, self.responses, Cancelling(data, self.in_flight))
        self.app = App(self.edge, [*self.routes, *routes])
        self.server = HttpServer(self.app, section)
        self._is_looking = False

    def _spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def connect(self) -> Client:
        """Open a connection on which nothing is said yet."""
        if not self._is_looking:
            self._is_looking = True
            self.server.start_looking()
        return Client(self.server)

    def open(
        self,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] | dict[str, Any] = b"",
        headers: dict[str, str] | None = None,
    ) -> Client:
        """Send a request; a dictionary is sent as JSON, a sequence of bytes in so many chunks without a length."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        given = self.headers | (headers or {})
        if isinstance(body, bytes):
            if "transfer-encoding" not in given:
                given = {"content-length": str(len(body))} | given
            parts = [body] if body else []
        else:
            given["transfer-encoding"] = "chunked"
            parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in body] + [b"0\r\n\r\n"]
        lines = [f"{name}: {value}\r\n" for name, value in given.items()]
        client = self.connect()
        client.send(f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1"))
        for part in parts:
            client.send(part)
        return client

    async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Reply:
        """Send a request and wait for the whole answer."""
        return await self.open(method, path, *args, **kwargs).reply()

    async def post(self, path: str, *args: Any, **kwargs: Any) -> Reply:
        return await self.call("POST", path, *args, **kwargs)


def write_keys(folder: Path, **secrets: str) -> Path:
    """Write a keys file with one secret per name; return its path."""
    path = folder / "keys.toml"
    tables = [
        f'[keys.{name}]\nsecrets = [{{ sha256 = "{sha256(secret.encode()).hexdigest()}" }}]\n'
        for name, secret in secrets.items()
    ]
    path.touch(mode=0o600)
    path.write_text("\n".join(tables))
    return path


def chat(**fields: Any) -> dict[str, Any]:
    """A minimal chat body with `fields` over it."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | fields


__all__ = [
    "HELLO",
    "MODELS",
    "Client",
    "FakePort",
    "FakeStream",
    "FakeTransport",
    "Gateway",
    "Reply",
    "chat",
    "write_keys",
]
