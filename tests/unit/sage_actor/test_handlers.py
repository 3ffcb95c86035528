"""Handlers are read from annotations; what is not well formed is refused when the class is first used."""

from __future__ import annotations

from typing import Any

import pytest

from sage_actor import Actor, handles
from sage_actor.handlers import handler_specs, verb_of
from sage_wire.messages import FindSpans, FoundSpans, Message, Ping, Pong


class Base(Actor):
    @handles
    async def answer(self, request: Ping) -> Pong:
        return Pong(actor_id="", epoch="", state="")


class Derived(Base):
    @handles(subject=lambda actor: "sage.v1.x", queue="q", max_slots=2, is_control=True)
    async def spans(self, request: FindSpans) -> FoundSpans | None:
        return None


def test_handlers_are_inherited_and_keep_their_options() -> None:
    answer, spans = handler_specs(Derived)
    assert (answer.method, answer.verb, answer.request_type) == ("answer", "ping", Ping)
    assert (spans.queue, spans.max_slots, spans.is_control) == ("q", 2, True)
    assert spans.subject is not None
    assert spans.subject(None) == "sage.v1.x"


class FoundSPARQLResult(Message):
    pass


def test_a_verb_is_the_message_name_in_snake_case() -> None:
    assert verb_of(FindSpans) == "find_spans"
    assert verb_of(Ping) == "ping"


def _not_async() -> Any:
    class Wrong(Actor):
        @handles
        def ping(self, request: Ping) -> Pong:  # type: ignore[type-var]
            raise NotImplementedError

    return Wrong


def _no_request() -> Any:
    class Wrong(Actor):
        @handles
        async def ping(self) -> Pong:
            raise NotImplementedError

    return Wrong


def _untyped() -> Any:
    class Wrong(Actor):
        @handles
        async def ping(self, request) -> Pong:  # type: ignore[no-untyped-def]
            raise NotImplementedError

    return Wrong


def _no_return() -> Any:
    class Wrong(Actor):
        @handles
        async def ping(self, request: Ping):  # type: ignore[no-untyped-def]
            raise NotImplementedError

    return Wrong


def _twice() -> Any:
    class Wrong(Actor):
        @handles
        async def one(self, request: Ping) -> None: ...

        @handles
        async def two(self, request: Ping) -> None: ...

    return Wrong


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_not_async, "not an `async def`"),
        (_no_request, "takes 0 arguments"),
        (_untyped, "subclass of Message"),
        (_no_return, "what it returns"),
        (_twice, "two handlers for 'ping'"),
    ],
)
def test_a_handler_that_is_not_well_formed_is_refused_by_name(make: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        handler_specs(make())


def test_a_slot_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_slots is 0"):
        handles(max_slots=0)
