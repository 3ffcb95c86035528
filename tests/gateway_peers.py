"""What stands behind a gateway in its integration tests: one scheduler-and-worker on an in-memory bus."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable

from sage_bus import MemoryBroker, Received
from sage_core import Overloaded, SageError
from sage_wire import decode, decode_work, encode, subjects
from sage_wire.messages import (
    Announcement,
    Answer,
    Cancel,
    Completed,
    Delta,
    Embed,
    Event,
    Failed,
    Frame,
    Generate,
    Rerank,
    RunPipeline,
    Scores,
    ServedModel,
    Started,
    Submit,
    Submits,
    Tokens,
    Usage,
    Vectors,
    WireError,
)

WORKER_ID = "worker-1"


class Backend:
    """Answers every pool. Chat echoes: `count N` generates N tokens, `wait` never ends, `big` floods the client."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.bus = broker.connect("backend")
        self.cancelled: list[str] = []
        self.submitted: list[Submit] = []
        self.is_full = False
        self._cancel_seen = asyncio.Event()
        self._submit_seen = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self.bus.subscribe(subjects.ALL_SUBMITS, self._submit)
        await self.bus.subscribe(subjects.ALL_CANCELS, self._cancel)
        await self.bus.subscribe(subjects.every("discover"), lambda _: self.announce())
        self.announce()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()

    async def saw_submit(self) -> None:
        await self._submit_seen.wait()

    async def saw_cancel(self) -> None:
        await self._cancel_seen.wait()

    def announce(self) -> None:
        models = [
            ServedModel(name="tiny", task="generate"),
            ServedModel(name="mini", task="embed", dim=4),
            ServedModel(name="mini", task="rerank"),
            ServedModel(name="pipeline/rag-docs", task="pipeline"),
        ]
        for kind, actor_id, served in (("scheduler", "s-1", []), ("llm-worker", WORKER_ID, models)):
            announcement = Announcement(
                actor_id=actor_id, kind=kind, epoch="e", sequence=1, state="ready", version="1", host="h",
                pid=os.getpid(), interval_ms=60_000, models=served,
            )  # fmt: skip
            self.bus.publish(subjects.announce(kind, actor_id), encode(announcement))

    def _submit(self, message: Received) -> None:
        for submit in decode(Submits, message.payload).submits:
            self._take(submit)

    def _take(self, submit: Submit) -> None:
        self.submitted.append(submit)
        self._submit_seen.set()
        if self.is_full:
            error = WireError.of(Overloaded("the queue is full", retry_after=3.0))
            answer = Answer(
                request_id=submit.request_id,
                attempt=submit.attempt,
                scheduler_id="s-1",
                epoch="e",
                error=error,
            )
            self.bus.publish(submit.reply_to, encode(Frame(answers=[answer])))
            return
        task = asyncio.create_task(self._run(submit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel(self, message: Received) -> None:
        self.cancelled.append(decode(Cancel, message.payload).request_id)
        self._cancel_seen.set()

    async def _run(self, submit: Submit) -> None:
        sequence = 0

        def send(*events: Event) -> None:
            nonlocal sequence
            deltas = []
            for event in events:
                deltas.append(
                    Delta(request_id=submit.request_id, attempt=submit.attempt, seq=sequence, event=event)
                )
                sequence += 1
            self.bus.publish(submit.reply_to, encode(Frame(deltas=deltas)))

        send(Started(worker_id=WORKER_ID, model=submit.pool))
        try:
            await self._perform(submit, send)
        except SageError as error:
            send(Failed(error=WireError.of(error)))

    async def _perform(self, submit: Submit, send: Callable[..., None]) -> None:
        match decode_work(submit.work):
            case Embed(texts=texts):
                rows = [struct.pack("<4f", len(text), 0.5, 0.25, 1.0) for text in texts]
                send(Vectors(offset=0, dim=4, data=b"".join(rows)), Completed(usage=Usage(prompt_tokens=3)))
            case Rerank(documents=documents):
                send(Scores(scores=[float(len(text)) for text in documents]), Completed())
            case Generate(prompt=prompt):
                text = prompt.messages[-1].content if hasattr(prompt, "messages") else "completion"
                await self._generate(text, send)
            case RunPipeline(messages=messages):
                await self._generate(messages[-1].content, send)

    async def _generate(self, text: str, send: Callable[..., None]) -> None:
        command, _, argument = text.partition(" ")
        if command == "wait":
            send(Tokens(text="waiting"))
            await asyncio.Event().wait()
        if command == "big":
            for _ in range(10_000):
                send(*[Tokens(text="x" * 2000)] * 20)
                await asyncio.sleep(0.001)
        words = [f" {number}" for number in range(int(argument))] if command == "count" else [text]
        for word in words:
            send(Tokens(text=word))
            await asyncio.sleep(0)
        send(Completed(usage=Usage(prompt_tokens=5, completion_tokens=len(words))))


@contextlib.asynccontextmanager
async def raw_connection(
    port: int, receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection on which a test may say anything."""
    raw = socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=2**12)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
