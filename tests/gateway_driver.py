"""Drives the gateway's ASGI application directly: a port whose answers tests decide, a client that can misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sage_core import Budget, Cancelled, FakeClock
from sage_gateway import App, Catalog, Edge, GatewaySection, InFlight
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
    """A request's events, as the test pushes them."""

    def __init__(self, pool: str, work: Work, options: dict[str, Any]) -> None:
        self.pool, self.work = pool, work
        self.request_id: str = options["request_id"]
        self.tenant: str = options["tenant"]
        self.slo_class: str = options["slo_class"]
        self.targets: Targets = options["targets"]
        self.route: str = options["route"]
        self.budget: Budget = options["budget"]
        self.traceparent: str | None = options["traceparent"]
        self.cancel_reason: str | None = None
        self._pending: list[Event] = []
        self._error: Exception | None = None
        self._is_complete = False
        self._changed = asyncio.Event()

    def push(self, *events: Event) -> None:
        self._pending.extend(events)
        self._is_complete = isinstance(events[-1], Completed)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._changed.set()

    async def next_batch(self) -> list[Event]:
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        batch, self._pending = self._pending, []
        return batch

    def cancel(self, reason: str = "cancelled by the caller") -> None:
        if self._is_complete or self._error is not None:
            return
        self.cancel_reason = reason
        self.fail(Cancelled(reason))


class FakePort:
    """A `SubmitPort`. `answer(stream)` runs at every submit; by default nothing is answered."""

    def __init__(self) -> None:
        self.streams: list[FakeStream] = []
        self.answer: Callable[[FakeStream], None] = lambda stream: None
        self._submitted = asyncio.Event()

    def answer_with(self, *events: Event) -> None:
        self.answer = lambda stream: stream.push(*events)

    def fail_with(self, error: Exception) -> None:
        self.answer = lambda stream: stream.fail(error)

    def submit(self, pool: str, work: Work, **options: Any) -> FakeStream:
        stream = FakeStream(pool, work, options)
        self.streams.append(stream)
        self.answer(stream)
        self._submitted.set()
        return stream

    async def next_stream(self) -> FakeStream:
        """Wait for the next submit."""
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


@dataclass
class Client:
    """One connection with one request in it. It reads at once unless `is_reading` is cleared."""

    app: App
    method: str
    path: str
    body: Sequence[bytes]
    headers: list[tuple[bytes, bytes]]
    sent: list[dict[str, Any]] = field(default_factory=list)
    num_received: int = 0
    is_aborted: bool = False

    def __post_init__(self) -> None:
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        self._left = asyncio.Event()
        self._progress = asyncio.Event()
        self._parts = list(self.body)
        scope = {
            "type": "http",
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "extensions": {"sage.abort": self._abort},
        }
        self.task = asyncio.create_task(self.app(scope, self._receive, self._send))

    def disconnect(self) -> None:
        self._left.set()
        self.is_reading.set()

    async def reply(self) -> Reply:
        await self.task
        return self.seen()

    def seen(self) -> Reply:
        """What has arrived so far."""
        start = self.sent[0]
        assert start["type"] == "http.response.start"
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        body = b"".join(message["body"] for message in self.sent[1:])
        if "content-length" in headers:
            assert int(headers["content-length"]) == len(body)
        return Reply(start["status"], headers, body)

    async def has_seen(self, text: bytes, times: int = 1) -> None:
        """Wait until `text` has arrived, so many times."""
        while sum(message.get("body", b"").count(text) for message in self.sent) < times:
            self._progress.clear()
            await self._progress.wait()

    def _abort(self) -> None:
        self.is_aborted = True

    async def _receive(self) -> dict[str, Any]:
        self.num_received += 1
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.is_reading.wait()
        if self._left.is_set():
            return
        self.sent.append(message)
        self._progress.set()
        if message["type"] == "http.response.body" and not message["more_body"]:
            self._left.set()  # as servers do: nothing more is received after the answer


class Gateway:
    """An application with everything around it in the test's hands."""

    def __init__(self, models: Sequence[ServedModel] = MODELS, **settings: Any) -> None:
        self.port = FakePort()
        self.clock = FakeClock(100.0)
        section = GatewaySection(**settings)
        self.catalog = Catalog(section.remember_models)
        if models:
            self.catalog.update("worker-1", "llm-worker", models, self.clock.now())
        self.in_flight = InFlight(section.max_in_flight)
        self.edge = Edge(
            settings=section,
            clock=self.clock,
            port=self.port,
            catalog=self.catalog,
            in_flight=self.in_flight,
            sample_ratio=0.0,
        )
        self.app = App(self.edge)

    def open(
        self,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] | dict[str, Any] = b"",
        headers: dict[str, str] | None = None,
        *,
        has_length: bool = True,
    ) -> Client:
        """Send a request; a dictionary is sent as JSON, a sequence of bytes in so many parts."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        parts = [body] if isinstance(body, bytes) else list(body)
        given = {"host": "127.0.0.1:8080"} | (headers or {})
        if has_length:
            given = {"content-length": str(sum(map(len, parts)))} | given
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in given.items()]
        return Client(self.app, method, path, parts, encoded)

    async def call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Reply:
        """Send a request and wait for the whole answer."""
        return await self.open(method, path, *args, **kwargs).reply()

    async def post(self, path: str, *args: Any, **kwargs: Any) -> Reply:
        return await self.call("POST", path, *args, **kwargs)


def chat(**fields: Any) -> dict[str, Any]:
    """A minimal chat body with `fields` over it."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]} | fields


__all__ = ["HELLO", "MODELS", "Client", "FakePort", "FakeStream", "Gateway", "Reply", "chat"]
