"""Handlers are read from annotations; what is not well formed is refused when the class is first used."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_actor import Actor, handles
from sage_actor.handlers import handler_specs, verb_of
from sage_core import Unavailable
from sage_wire import decode, encode
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
        (_not_async, "answers, but is not an `async def`"),
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


class OnDemand(Actor):
    @handles(is_on_demand=True)
    async def ping(self, request: Ping) -> Pong:
        return Pong(actor_id=self.context.actor_id, epoch=self.context.epoch, state="")


async def test_a_handler_on_demand_answers_where_it_was_told_to_and_only_while(
    runtime_of: Any, peer: Any
) -> None:
    runtime = await runtime_of(OnDemand)
    context = runtime.actor.context
    with pytest.raises(Unavailable):
        await peer.bus.request("sage.v1.x", encode(Ping()), timeout=1.0)
    one, two = [await context.listen("ping", subject) for subject in ("sage.v1.x", "sage.v1.y")]
    for subject in ("sage.v1.x", "sage.v1.y"):
        reply = await peer.bus.request(subject, encode(Ping()), timeout=1.0)
        assert decode(Pong, reply.payload).actor_id == "a-1"
    await one.unsubscribe()
    with pytest.raises(Unavailable):
        await peer.bus.request("sage.v1.x", encode(Ping()), timeout=1.0)
    await peer.bus.request("sage.v1.y", encode(Ping()), timeout=1.0)
    await runtime.stop()
    with pytest.raises(Unavailable):
        await peer.bus.request("sage.v1.y", encode(Ping()), timeout=1.0)
    await two.unsubscribe()


async def test_what_one_life_listens_to_ends_with_it(runtime_of: Any, peer: Any) -> None:
    runtime = await runtime_of(OnDemand)
    await runtime.actor.context.listen("ping", "sage.v1.x")
    runtime.actor.context.spawn(_crash(), name="crash")
    before = runtime.epoch
    async with asyncio.timeout(1):
        while runtime.epoch == before or runtime.state != "ready":  # noqa: ASYNC110 - the epoch tells
            await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await peer.bus.request("sage.v1.x", encode(Ping()), timeout=1.0)
    await runtime.actor.context.listen("ping", "sage.v1.x")
    await peer.bus.request("sage.v1.x", encode(Ping()), timeout=1.0)


async def _crash() -> None:
    raise RuntimeError("a bug")


def test_a_handler_on_demand_has_no_subject_of_its_own() -> None:
    with pytest.raises(ValueError, match="on demand has no subject"):
        handles(subject=lambda _: "sage.v1.x", is_on_demand=True)
