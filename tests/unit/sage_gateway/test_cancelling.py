"""Ending requests by id at whichever gateway they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sage_bus import MemoryBroker
from sage_gateway.cancelling import Cancelling
from sage_gateway.in_flight import InFlight
from sage_wire import subjects


@dataclass
class Served:
    request_id: str
    tenant: str = "acme"
    shown_id: str = ""
    reasons: list[str] = field(default_factory=list)

    def cancel(self, reason: str) -> None:
        self.reasons.append(reason)


@dataclass
class Gateway:
    broker: MemoryBroker
    name: str

    def __post_init__(self) -> None:
        self.in_flight = InFlight(10)
        self.cancelling = Cancelling(self.broker.connect(self.name), self.in_flight)


@pytest.fixture
async def gateways() -> tuple[Gateway, Gateway]:
    broker = MemoryBroker()
    both = Gateway(broker, "one"), Gateway(broker, "two")
    for gateway in both:
        await gateway.cancelling.start()
    return both


async def test_a_request_of_this_gateway_is_ended_here(gateways: tuple[Gateway, Gateway]) -> None:
    one, _ = gateways
    served = Served("chatcmpl-1")
    one.in_flight.admit(served)
    assert await one.cancelling.cancel("acme", "chatcmpl-1") == 1
    assert served.reasons == ["cancelled by id"]


async def test_a_request_of_another_gateway_is_ended_there(gateways: tuple[Gateway, Gateway]) -> None:
    one, two = gateways
    served = Served("chatcmpl-1", shown_id="mine")
    two.in_flight.admit(served)
    assert await one.cancelling.cancel("acme", "mine") == 1
    assert served.reasons == ["cancelled by id"]


async def test_no_gateway_ends_the_request_of_another_tenant(
    gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_gateway.cancelling._ANSWER_SECONDS", 0.02)
    one, two = gateways
    served = Served("chatcmpl-1")
    two.in_flight.admit(served)
    assert await one.cancelling.cancel("other", "chatcmpl-1") == 0
    assert served.reasons == []


async def test_what_is_no_message_is_not_answered(gateways: tuple[Gateway, Gateway]) -> None:
    one, two = gateways
    served = Served("chatcmpl-1")
    two.in_flight.admit(served)
    one.broker.connect("stranger").publish(subjects.REQUESTS_CANCEL, b"\xff")
    assert await one.cancelling.cancel("acme", "chatcmpl-1") == 1


async def test_a_gateway_that_closed_hears_nothing(gateways: tuple[Gateway, Gateway]) -> None:
    one, two = gateways
    served = Served("chatcmpl-1")
    two.in_flight.admit(served)
    for gateway in gateways:
        await gateway.cancelling.close()
    assert await one.cancelling.cancel("acme", "chatcmpl-1") == 0
    assert served.reasons == []
