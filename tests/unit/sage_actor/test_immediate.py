"""Immediate handlers: run where their message arrives, in order, and lost in no restart."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import msgspec

from sage_actor import Actor, ActorContext, handles
from sage_core import NotFound
from sage_wire import encode, subjects
from sage_wire.messages import Message


class Note(Message, frozen=True):
    text: str


class Notebook(Actor):
    """Writes down what it is told; `bad` is refused, `crash` is a bug."""

    kind = "notebook"
    written: ClassVar[list[str]] = []
    lives: ClassVar[int] = 0
    gate: ClassVar[asyncio.Event]

    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        Notebook.lives += 1

    async def on_start(self) -> None:
        if Notebook.lives > 1:
            await Notebook.gate.wait()

    @handles
    def note(self, request: Note) -> None:
        if request.text == "bad":
            raise NotFound("no such note")
        if request.text == "crash":
            raise ZeroDivisionError("bug")
        Notebook.written.append(request.text)


class Teller:
    """Tells the notebook."""

    def __init__(self, broker: Any) -> None:
        Notebook.written, Notebook.lives, Notebook.gate = [], 0, asyncio.Event()
        self.bus = broker.connect("teller")

    def tell(self, *texts: str) -> None:
        for text in texts:
            self.bus.publish(subjects.actor("a-1", "note"), encode(Note(text=text)))

    async def until(self, *texts: str) -> None:
        async with asyncio.timeout(1):
            while Notebook.written != list(texts):  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_what_is_told_is_handled_in_order_without_a_task(broker: Any, runtime_of: Any) -> None:
    teller = Teller(broker)
    runtime = await runtime_of(Notebook)
    tasks = asyncio.all_tasks()
    teller.tell("1", "2", "3")
    await teller.until("1", "2", "3")
    assert asyncio.all_tasks() <= tasks
    assert runtime.num_in_flight == 0


async def test_an_error_or_a_malformed_body_costs_one_message(broker: Any, runtime_of: Any) -> None:
    teller = Teller(broker)
    await runtime_of(Notebook)
    teller.tell("1", "bad")
    teller.bus.publish(subjects.actor("a-1", "note"), b"\xc1")
    teller.bus.publish(subjects.actor("a-1", "note"), msgspec.msgpack.encode({"text": 3}))
    teller.tell("2")
    await teller.until("1", "2")
    assert Notebook.lives == 1


async def test_a_crash_begins_another_life_which_gets_what_came_meanwhile(
    broker: Any, runtime_of: Any
) -> None:
    teller = Teller(broker)
    await runtime_of(Notebook)
    teller.tell("1", "crash")
    async with asyncio.timeout(1):
        while Notebook.lives < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    teller.tell("2", "3")
    await asyncio.sleep(0.002)
    assert Notebook.written == ["1"]
    Notebook.gate.set()
    await teller.until("1", "2", "3")


async def test_between_two_lives_no_more_waits_than_the_mailbox_holds(broker: Any, runtime_of: Any) -> None:
    teller = Teller(broker)
    await runtime_of(Notebook, max_mailbox=2)
    teller.tell("crash")
    async with asyncio.timeout(1):
        while Notebook.lives < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    teller.tell("1", "2", "3")
    await asyncio.sleep(0.002)
    Notebook.gate.set()
    await teller.until("1", "2")
    teller.tell("4")
    await teller.until("1", "2", "4")
