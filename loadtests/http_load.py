"""A small open-loop HTTP/1.1 load generator for OpenAI endpoints, on uvloop and httptools.

Latency counts from the scheduled send. TTFT is the time to the first SSE event whose delta has non-empty content; a
stream counts as good only if it ended with `[DONE]`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httptools

__all__ = ["Outcome", "Send", "replay"]


@dataclass(frozen=True, slots=True)
class Send:
    """A request to send `at` seconds from the beginning."""

    at: float
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """One request: when it was due and sent, its first token and end (monotonic seconds), and the gaps."""

    due: float
    sent: float | None = None
    first: float | None = None
    end: float | None = None
    status: int = 0
    num_events: int = 0
    gaps: list[float] = field(default_factory=list)
    is_done: bool = False


class _Connection(asyncio.Protocol):
    """One keep-alive connection carrying one request at a time."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.finished: asyncio.Future[None] | None = None
        self.is_stream = False
        self._parser = httptools.HttpResponseParser(self)
        self._last = 0.0
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.finished is not None and not self.finished.done():
            self.finished.set_exception(ConnectionError(str(error)))

    def on_body(self, body: bytes) -> None:
        assert self.outcome is not None
        now = time.monotonic()
        if not self.is_stream:
            return
        count = body.count(b'"content":"') - body.count(b'"content":""')
        if count > 0:
            if self.outcome.first is None:
                self.outcome.first = now
            else:
                self.outcome.gaps.append(now - self._last)
            self._last = now
            self.outcome.num_events += count
        if b"[DONE]" in body:
            self.outcome.is_done = True

    def on_message_complete(self) -> None:
        assert self.outcome is not None
        assert self.finished is not None
        self.outcome.end = time.monotonic()
        self.outcome.status = self._parser.get_status_code()
        if not self.is_stream:
            self.outcome.is_done = self.outcome.status == 200
        self._parser = httptools.HttpResponseParser(self)
        if not self.finished.done():
            self.finished.set_result(None)

    async def send(self, request: bytes, outcome: Outcome, *, is_stream: bool, timeout: float = 60.0) -> None:
        self.outcome, self.is_stream = outcome, is_stream
        self.finished = asyncio.get_running_loop().create_future()
        outcome.sent = time.monotonic()
        self.transport.write(request)  # type: ignore[attr-defined]
        await asyncio.wait_for(self.finished, timeout)


def _request(host: str, port: int, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _connect(host: str, port: int) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
    return connection


async def replay(
    host: str, port: int, path: str, sends: Sequence[Send], *, is_stream: bool, timeout: float = 60.0
) -> list[Outcome]:
    """Send each of `sends` at its time whatever the answers; return their outcomes in the same order."""
    outcomes: list[Outcome] = []
    idle: list[_Connection] = []

    async def one(request: bytes, outcome: Outcome) -> None:
        while idle and idle[-1].transport.is_closing():
            idle.pop()
        connection = idle.pop() if idle else await _connect(host, port)
        await connection.send(request, outcome, is_stream=is_stream, timeout=timeout)
        idle.append(connection)

    tasks = []
    started = time.monotonic()
    for send in sends:
        due = started + send.at
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        outcome = Outcome(due=due)
        outcomes.append(outcome)
        tasks.append(asyncio.create_task(one(_request(host, port, path, send.body, send.headers), outcome)))
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.transport.close()
    return outcomes
