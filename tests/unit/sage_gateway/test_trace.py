"""The root span of a request, and what it must not say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway_driver import HELLO, Gateway, chat
from sage_core import EngineError, TelemetrySettings
from sage_telemetry import Telemetry, configure
from sage_wire.messages import Span

CHAT = "/v1/chat/completions"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = configure("gateway", "gateway-1", TelemetrySettings(log_level="error"))
    yield made
    made.shutdown(1.0)


def spans(telemetry: Telemetry, trace_id: str = TRACE_ID) -> list[Span]:
    return telemetry.recent.find(trace_id)


async def test_a_request_is_one_root_span_that_says_what_was_done(
    telemetry: Telemetry, gateway: Gateway
) -> None:
    reply = await gateway.post(
        CHAT, chat(messages=[{"role": "user", "content": "canary-7"}]), headers=HEADERS
    )
    (span,) = spans(telemetry)
    assert span.name == "POST /v1/chat/completions"
    assert span.parent_id == "b7ad6b7169203331"
    assert not span.is_error
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "sage.request.id": reply.json["id"],
        "sage.slo_class": "interactive",
    }
    assert expected.items() <= span.attributes.items()
    assert "sage.ttft_ms" in span.attributes
    assert "canary-7" not in str(span)
    assert gateway.port.streams[0].traceparent == f"00-{TRACE_ID}-{span.span_id}-01"


async def test_the_clients_own_id_finds_the_request(telemetry: Telemetry, gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(), headers={**HEADERS, "x-client-request-id": "my-own-id"})
    (span,) = telemetry.recent.find_request("my-own-id")
    assert span.attributes["sage.request.id"] == reply.json["id"]
    assert span.attributes["sage.client_request.id"] == "my-own-id"


async def test_a_new_trace_begins_with_the_requests_own_span(telemetry: Telemetry) -> None:
    gateway = Gateway()
    gateway.port.answer_with(*HELLO)
    gateway.edge.sample_ratio = 1.0
    reply = await gateway.post(CHAT, chat(stream=True))
    (span,) = spans(telemetry, reply.headers["x-sage-trace-id"])
    assert span.parent_id is None


async def test_the_callers_mistake_is_no_failure_of_ours_and_ours_is(
    telemetry: Telemetry, gateway: Gateway
) -> None:
    await gateway.post(CHAT, b"{", headers=HEADERS)
    await gateway.post(CHAT, chat(model="nobody"), headers=HEADERS)
    gateway.port.fail_with(EngineError("broken"))
    await gateway.post(CHAT, chat(), headers=HEADERS)
    found = [(span.attributes["http.response.status_code"], span.is_error) for span in spans(telemetry)]
    assert sorted(found) == [(400, False), (404, False), (500, True)]


async def test_a_client_that_left_is_499_in_the_trace(telemetry: Telemetry) -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=True), headers=HEADERS)
    await gateway.port.next_stream()
    client.disconnect()
    (span,) = spans(telemetry)
    assert span.attributes["http.response.status_code"] == 499


async def test_an_unsampled_request_is_its_header_alone(telemetry: Telemetry, gateway: Gateway) -> None:
    unsampled = HEADERS["traceparent"][:-2] + "00"
    reply = await gateway.post(CHAT, chat(), headers={"traceparent": unsampled})
    assert gateway.port.streams[0].traceparent == unsampled
    assert "x-sage-trace-id" not in reply.headers
    gateway.edge.sample_ratio = 0.0
    await gateway.post(CHAT, chat())
    made = gateway.port.streams[1].traceparent
    assert made is not None
    assert made.endswith("-00")
    assert len(telemetry.recent) == 0
