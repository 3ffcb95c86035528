"""Replies: one wildcard subscription for all requests of a connection, a token for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sage_bus.bus import NO_HEADERS, Received
from sage_bus.checks import is_inbox
from sage_bus.header_block import header_status, parse_headers
from sage_bus.nats_client import Handler
from sage_core import BusError, SageError

__all__ = ["Answer", "Answers", "ReplyInbox", "received"]

NO_RESPONDERS: Final = "503"
UNHEARD_SECONDS: Final = 5.0
"""How long the server may take to say that nobody listens, with the time a message may wait for a connection."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A raw reply: body, header block and, for a message of the server itself, its status (`503`, `404 …`)."""

    payload: bytes
    block: bytes
    status: str
    subject: bytes
    reply: bytes


def received(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> Received:
    """Return the message as callbacks see it; a reply subject that is no inbox is dropped."""
    answer_on = reply.decode("ascii", "replace") if reply else None
    return Received(
        subject.decode("ascii", "replace"),
        payload,
        parse_headers(block) if block else NO_HEADERS,
        answer_on if answer_on is not None and is_inbox(answer_on) else None,
    )


class Answers:
    """What came back for one request. `done` is set with the last wanted answer, or with an error.

    `ends` tells the last answer of a series that says itself where it ends. `is_repeatable` says that asking
    twice does no harm: then the question is asked again where the connection was lost before the answer came.
    """

    def __init__(
        self,
        subject: str,
        max_answers: int | None,
        ends: Callable[[Answer], bool] | None = None,
        *,
        is_repeatable: bool = False,
    ) -> None:
        self.subject = subject
        self.is_repeatable = is_repeatable
        self.is_written = False
        self.is_interrupted = False
        self.received: list[Answer] = []
        self.is_unheard = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._max_answers = max_answers
        self._ends = ends

    def handle(self, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Take one answer; those after the last wanted one are dropped."""
        if self.done.done():
            return
        status = header_status(block)
        if status.startswith(NO_RESPONDERS) and not payload:
            self.is_unheard = True
            self.finish()
            return
        answer = Answer(payload, block, status, subject, reply)
        self.received.append(answer)
        if len(self.received) == self._max_answers or (self._ends is not None and self._ends(answer)):
            self.finish()

    def interrupt(self) -> None:
        """The connection was lost: have the caller ask again, unless the question still waits to be sent."""
        if self.is_repeatable and self.is_written and not self.done.done():
            self.is_interrupted = True
            self.finish()

    def restart(self) -> None:
        """Forget what came before the interruption."""
        self.received.clear()
        self.is_written = self.is_interrupted = False
        self.done = asyncio.get_running_loop().create_future()

    def finish(self) -> None:
        """Wake the waiting caller. Idempotent."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: SageError) -> None:
        """Wake the waiting caller with an error. Idempotent."""
        if not self.done.done():
            self.done.set_exception(error)


class ReplyInbox:
    """Handlers by token under `<prefix>.*`. Unknown and late tokens are ignored."""

    def __init__(self, prefix: str) -> None:
        if not is_inbox(prefix):
            raise BusError(f"inbox prefix {prefix!r} must start with _INBOX and use the subject alphabet")
        self.prefix = prefix
        self.pattern = f"{prefix}.*"
        self._cut = len(prefix) + 1
        self._base = f"{prefix}.".encode("ascii")
        self._next = 0
        self._handlers: dict[bytes, Handler] = {}
        self._answers: dict[bytes, Answers] = {}
        self._unheard: deque[tuple[float, bytes]] = deque()

    def open(self, handler: Handler) -> bytes:
        """Return a new reply subject that leads to `handler` until it is closed."""
        self._next += 1
        token = b"%x" % self._next
        self._handlers[token] = handler
        return self._base + token

    def unshared(self) -> str:
        """Return a new reply subject outside the wildcard, for a subscription of its own."""
        self._next += 1
        return f"{self.prefix}.own.{self._next:x}"

    def open_unheard(self, unheard: Callable[[], None], now: float) -> bytes:
        """Return a new reply subject; `unheard` is called where the server answers there that nobody listens.

        It is closed by that, or with one that is opened a few seconds later: a silent server says nothing more.
        """

        def handle(subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
            del reply
            if not payload and header_status(block).startswith(NO_RESPONDERS):
                self.close(subject)
                unheard()

        while self._unheard and self._unheard[0][0] < now - UNHEARD_SECONDS:
            self.close(self._unheard.popleft()[1])
        subject = self.open(handle)
        self._unheard.append((now, subject))
        return subject

    def open_answers(self, answers: Answers) -> bytes:
        """Like `open`, for a request that a permission error or the end of the connection must wake."""
        reply = self.open(answers.handle)
        self._answers[reply] = answers
        return reply

    def close(self, reply: bytes) -> None:
        """Forget a reply subject. Idempotent."""
        self._handlers.pop(reply[self._cut :], None)
        self._answers.pop(reply, None)

    def is_open(self, reply: bytes) -> bool:
        """Tell whether somebody still waits there."""
        return reply[self._cut :] in self._handlers

    def dispatch(self, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Hand a message of the wildcard subscription to its handler."""
        handler = self._handlers.get(subject[self._cut :])
        if handler is not None:
            handler(subject, reply, payload, block)

    def interrupt(self) -> None:
        """Have every repeatable request that is under way asked again."""
        for answers in list(self._answers.values()):
            answers.interrupt()

    def fail(self, error: SageError, concerns: Callable[[Answers], bool] = lambda _: True) -> None:
        """Wake every waiting request that `concerns` selects with `error`."""
        for answers in list(self._answers.values()):
            if concerns(answers):
                answers.fail(error)
