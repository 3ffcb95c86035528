"""What is kept of responses, for whom, and where its bounds are."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from sage_bus import MemoryBroker
from sage_core import BadRequest, LimitExceeded, NotFound
from sage_gateway.errors import HttpRefused
from sage_gateway.responses import store as store_module
from sage_gateway.responses.bodies import CreateBody
from sage_gateway.responses.conversation import Reference
from sage_gateway.responses.items import InputText, Message, OutputText
from sage_gateway.responses.resource import ResponseBody
from sage_gateway.responses.store import ResponseStore
from sage_wire import subjects


def store(
    broker: MemoryBroker | None = None, *, max_response: int = 10_000, ttl: float = 60.0
) -> ResponseStore:
    bus = (broker or MemoryBroker()).connect("data")
    return ResponseStore(bus, ttl=ttl, max_response=max_response, max_bytes=10**6)


def response(name: str, previous: str | None = None) -> ResponseBody:
    body = msgspec.convert({"model": "tiny", "previous_response_id": previous}, CreateBody)
    made = ResponseBody.of(body, response_id=f"resp_{name}", created=1, model="tiny", is_stored=True)
    said = Message(f"msg_{name}o0", "assistant", [OutputText(f"answer {name}")])
    return msgspec.structs.replace(made, status="completed", output=[said])


def asked(name: str) -> Message:
    return Message(f"msg_{name}i0", "user", [InputText(f"question {name}")])


async def chain(kept: ResponseStore, length: int) -> str:
    previous = None
    for number in range(length):
        made = response(str(number), previous)
        assert await kept.save("me", made, [asked(str(number))])
        previous = made.id
    assert previous is not None
    return previous


async def test_a_response_is_found_as_it_was_shown() -> None:
    kept = store()
    made = response("a")
    assert await kept.save("me", made, [asked("a")])
    found = await kept.find("me", "resp_a")
    assert found.body == msgspec.json.encode(made)
    assert (found.input, found.output) == ([asked("a")], made.output)


async def test_keys_tell_neither_tenant_nor_id() -> None:
    broker = MemoryBroker()
    await store(broker).save("me", response("a"), [])
    (key,) = broker.bucket(subjects.RESPONSES_BUCKET).entries
    assert key == subjects.response_entry("me", "resp_a") != subjects.response_entry("m", "eresp_a")
    assert "resp" not in key


async def test_a_conversation_is_every_item_from_its_beginning() -> None:
    kept = store()
    items = await kept.conversation("me", await chain(kept, 3))
    assert [item.id for item in items] == ["msg_0i0", "msg_0o0", "msg_1i0", "msg_1o0", "msg_2i0", "msg_2o0"]
    assert await kept.conversation("me", None) == []


async def test_a_conversation_is_bounded_in_responses_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store()
    last = await chain(kept, 3)
    monkeypatch.setattr(store_module, "MAX_CHAIN", 2)
    with pytest.raises(LimitExceeded, match="more than 2 responses"):
        await kept.conversation("me", last)
    monkeypatch.setattr(store_module, "MAX_CHAIN", 3)
    monkeypatch.setattr(store_module, "MAX_CHAIN_BYTES", 2000)
    with pytest.raises(LimitExceeded):
        await kept.conversation("me", last)


async def test_a_conversation_that_leads_back_to_itself_ends_at_its_bound() -> None:
    kept = store()
    await kept.save("me", response("a", "resp_a"), [])
    with pytest.raises(LimitExceeded):
        await kept.conversation("me", "resp_a")


async def test_a_conversation_of_another_tenant_is_not_found() -> None:
    kept = store()
    last = await chain(kept, 1)
    with pytest.raises(HttpRefused) as refused:
        await kept.conversation("you", last)
    assert refused.value.http_error.param == "previous_response_id"


async def test_references_are_found_in_the_conversation_and_in_other_responses() -> None:
    kept = store()
    await kept.save("me", response("a"), [asked("a")])
    beside = Message("mine", "user", [InputText("x")])
    items = await kept.resolve(
        "me", [Reference("mine", "p"), asked("b"), Reference("msg_ao0", "p")], [beside]
    )
    assert [item.id for item in items] == ["mine", "msg_bi0", "msg_ao0"]
    for tenant, item_id in (("you", "msg_ao0"), ("me", "msg_ao1"), ("me", "msg_xo0"), ("me", "none")):
        with pytest.raises(BadRequest) as refused:
            await kept.resolve(tenant, [Reference(item_id, "input[0].id")], [])
        assert refused.value.param == "input[0].id"


async def test_what_is_too_large_is_not_stored() -> None:
    kept = store(max_response=1500)
    assert not await kept.save("me", response("a"), [Message("m", "user", [InputText("x" * 1500)])])
    with pytest.raises(NotFound):
        await kept.find("me", "resp_a")


async def test_a_deleted_response_is_gone() -> None:
    kept = store()
    await kept.save("me", response("a"), [])
    with pytest.raises(NotFound):
        await kept.delete("you", "resp_a")
    await kept.delete("me", "resp_a")
    for _ in range(2):
        with pytest.raises(NotFound):
            await kept.delete("me", "resp_a")


async def test_a_response_has_its_time_to_live() -> None:
    broker = MemoryBroker()
    await store(broker, ttl=1234.0).save("me", response("a"), [])
    bucket = broker.bucket(subjects.RESPONSES_BUCKET)
    (timer,) = bucket.expiries.values()
    loop = asyncio.get_running_loop()
    assert 1200 < timer.when() - loop.time() <= 1234
