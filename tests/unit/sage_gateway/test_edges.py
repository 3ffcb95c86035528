"""What a client may do wrong, or do to us: bodies, limits, keys, leaving, stalling, cancelling."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway_driver import HELLO, Gateway, chat, write_keys
from sage_wire.messages import Completed, Targets, Tokens

CHAT = "/v1/chat/completions"
KEY = "sk-test"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


async def test_an_oversized_body_is_refused_without_reading_a_byte() -> None:
    gateway = Gateway(max_body=1024)
    client = gateway.open("POST", CHAT, headers={"content-length": "1025"})
    reply = await client.reply()
    assert reply.status == 413
    assert reply.error["code"] == "body_too_large"


async def test_a_body_that_grows_too_large_is_refused_while_reading() -> None:
    gateway = Gateway(max_body=1024)
    client = gateway.open("POST", CHAT, headers={"transfer-encoding": "chunked"})
    for _ in range(2):
        client.send(b"258\r\n" + b"x" * 600 + b"\r\n")
    reply = await client.reply()
    assert reply.status == 413
    assert reply.headers["connection"] == "close"


async def test_the_largest_allowed_body_is_read_whole(gateway: Gateway) -> None:
    gateway = Gateway(max_body=1024)
    gateway.port.answer_with(*HELLO)
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}]}'.ljust(1024)
    assert (await gateway.post(CHAT, [body[:500], body[500:]])).status == 200


async def test_a_length_beyond_any_number_is_refused(gateway: Gateway) -> None:
    assert (await gateway.post(CHAT, headers={"content-length": "9" * 30})).status == 400


async def test_a_body_that_does_not_come_is_given_up() -> None:
    gateway = Gateway(body_timeout=0.02)
    client = gateway.open("POST", CHAT, headers={"content-length": "10"})
    reply = await client.reply()
    assert reply.status == 408
    assert reply.headers["connection"] == "close"


async def test_a_client_that_leaves_in_mid_body_costs_nothing(gateway: Gateway) -> None:
    client = gateway.open("POST", CHAT, headers={"content-length": "10"})
    client.disconnect()
    assert client.writes == []
    assert gateway.port.streams == []


async def test_too_many_headers_are_refused(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(), headers={f"x-{n}": "1" for n in range(101)})
    assert reply.status == 431


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b'{"model": ', "not valid JSON"),
        (b'{"model": "tiny", "messages": [], "temperature": NaN}', "not valid JSON"),
        (b'{"x": Infinity}', "not valid JSON"),
        (b'{"model": "\\ud800", "messages": []}', "surrogate"),
        (b'{"model": "\\udc00", "messages": []}', "surrogate"),
        (b'{"model": "\xff", "messages": []}', "UTF-8"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"x": ' + b'{"x":' * 100_000, "nested too deeply"),
        (b'{"model": "a"} {"model": "b"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
    ],
)
async def test_what_is_no_json_is_one_precise_400(gateway: Gateway, body: bytes, says: str) -> None:
    reply = await gateway.post(CHAT, body)
    assert reply.status == 400
    assert reply.error["code"] == "invalid_json"
    assert says in reply.error["message"]


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"5"])
async def test_a_body_that_is_no_object_is_400(gateway: Gateway, body: bytes) -> None:
    reply = await gateway.post(CHAT, body)
    assert reply.status == 400
    assert "JSON object" in reply.error["message"]


async def test_a_huge_value_is_not_sent_back(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(messages=[{"role": "x" * 100_000, "content": "x"}]))
    assert reply.status == 400
    assert len(reply.body) < 1000


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_cancels_its_request(is_streamed: bool) -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=is_streamed))
    stream = await gateway.port.next_stream()
    client.disconnect()
    assert stream.cancel_reason == "the client disconnected"
    assert client.writes == []
    assert len(gateway.in_flight) == 0


async def test_a_client_that_leaves_in_mid_stream_cancels_its_request() -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="first"))
    await client.has_seen(b"first")
    client.disconnect()
    assert stream.cancel_reason == "the client disconnected"


async def test_a_client_that_leaves_cancels_embeddings_too() -> None:
    gateway = Gateway()
    client = gateway.open("POST", "/v1/embeddings", {"model": "mini", "input": "x"})
    stream = await gateway.port.next_stream()
    client.disconnect()
    assert stream.cancel_reason == "the client disconnected"


async def test_a_finished_request_is_not_cancelled(gateway: Gateway) -> None:
    await gateway.post(CHAT, chat(stream=True))
    await gateway.post(CHAT, chat())
    assert [stream.cancel_reason for stream in gateway.port.streams] == [None, None]


async def test_no_task_outlives_its_request(gateway: Gateway) -> None:
    before = asyncio.all_tasks()
    client = gateway.open("POST", CHAT, chat(stream=True))
    await client.reply()
    gone = gateway.open("POST", CHAT, chat(stream=True))
    gone.disconnect()
    assert asyncio.all_tasks() == before


async def test_a_silent_stream_is_kept_alive_also_before_its_first_token() -> None:
    gateway = Gateway(keep_alive_interval=0.01)
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    await client.has_seen(b": keep-alive\n\n")
    assert client.seen().status == 200
    stream.push(Tokens(text="first"))
    await client.has_seen(b"first")
    await client.has_seen(b": keep-alive\n\n", times=client.seen().num_comments + 1)
    stream.push(Completed())
    reply = await client.reply()
    assert reply.events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert reply.events[-1] == "[DONE]"


async def test_a_failure_after_a_comment_is_an_error_event() -> None:
    gateway = Gateway(keep_alive_interval=0.01)
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    await client.has_seen(b": keep-alive\n\n")
    stream.cancel("cancelled by id")
    reply = await client.reply()
    assert [event["error"]["code"] for event in reply.events] == ["request_cancelled"]


async def test_a_stream_that_speaks_needs_no_comments() -> None:
    gateway = Gateway(keep_alive_interval=0.05)
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    for number in range(10):
        stream.push(Tokens(text=f"<{number}>"))
        await client.has_seen(b"<%d>" % number)
        await asyncio.sleep(0.01)
    stream.push(Completed())
    assert (await client.reply()).num_comments == 0


async def test_a_client_that_takes_nothing_is_cut_off_and_its_request_cancelled() -> None:
    gateway = Gateway(stall_timeout=0.03)
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    client.transport.take(is_taking=False)
    stream.push(Tokens(text="first"))
    await client.is_left()
    assert client.is_aborted
    assert stream.cancel_reason == "the client takes no data"
    assert len(gateway.in_flight) == 0


async def test_a_client_that_falls_too_far_behind_is_cut_off() -> None:
    gateway = Gateway(max_backlog=2**16)
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    client.transport.take(is_taking=False)
    stream.push(Tokens(text="first"))
    await asyncio.sleep(0)
    stream.push(*[Tokens(text="x" * 1000) for _ in range(100)])
    await client.is_left()
    assert client.is_aborted
    assert stream.cancel_reason is not None


async def test_a_request_is_cancelled_by_the_id_it_was_answered_with() -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="first"))
    await client.has_seen(b"first")
    request_id = client.seen().headers["x-request-id"]
    reply = await gateway.call("DELETE", f"/v1/requests/{request_id}")
    assert reply.json == {"id": request_id, "object": "request", "status": "cancelled"}
    assert (await client.reply()).events[-1]["error"]["code"] == "request_cancelled"
    assert stream.cancel_reason == "cancelled by id"


async def test_a_request_is_cancelled_by_the_clients_own_id() -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(), headers={"x-client-request-id": "mine"})
    await gateway.port.next_stream()
    assert (await gateway.post("/v1/requests/mine/cancel")).status == 200
    reply = await client.reply()
    assert reply.status == 499
    assert reply.error["code"] == "request_cancelled"


async def test_cancelling_what_does_not_run_is_404(gateway: Gateway) -> None:
    reply = await gateway.call("DELETE", "/v1/requests/nothing")
    assert reply.status == 404
    assert reply.error["code"] == "not_found"


async def test_nobody_cancels_the_requests_of_another_key(tmp_path: Path) -> None:
    gateway = Gateway(keys_file=write_keys(tmp_path, mine=KEY, other="other"))
    mine, other = {"authorization": f"Bearer {KEY}"}, {"authorization": "Bearer other"}
    client = gateway.open("POST", CHAT, chat(), headers=mine | {"x-client-request-id": "mine"})
    stream = await gateway.port.next_stream()
    assert (await gateway.call("DELETE", "/v1/requests/mine", headers=other)).status == 404
    assert (await gateway.call("DELETE", f"/v1/requests/{stream.request_id}", headers=other)).status == 404
    assert (await gateway.call("DELETE", "/v1/requests/mine", headers=mine)).status == 200
    await client.reply()


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": KEY}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"},
     {"authorization": "Bearer "}],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/readyz"), ("GET", "/nothing")],
)
async def test_without_a_key_only_liveness_answers(
    tmp_path: Path, headers: dict[str, str], method: str, path: str
) -> None:
    gateway = Gateway(keys_file=write_keys(tmp_path, mine=KEY))
    reply = await gateway.call(method, path, headers=headers)
    assert reply.status == 401
    assert reply.error["code"] == "invalid_api_key"
    assert (await gateway.call("GET", "/healthz", headers=headers)).status == 200


async def test_a_key_opens_everything_and_names_the_tenant(tmp_path: Path) -> None:
    gateway = Gateway(keys_file=write_keys(tmp_path, mine=KEY))
    gateway.port.answer_with(*HELLO)
    headers = {"authorization": f"bearer {KEY}", "host": "sage.example.org"}
    assert (await gateway.post(CHAT, chat(), headers=headers)).status == 200
    assert gateway.port.streams[0].tenant == "mine"


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:8080", "app.localhost"])
async def test_an_open_gateway_answers_loopback_names(gateway: Gateway, host: str) -> None:
    assert (await gateway.call("GET", "/v1/models", headers={"host": host})).status == 200


@pytest.mark.parametrize("host", ["evil.example", "192.168.0.5:8080", "", "localhost.evil.example"])
async def test_an_open_gateway_refuses_other_names(gateway: Gateway, host: str) -> None:
    reply = await gateway.post(CHAT, chat(), headers={"host": host})
    assert reply.status == 403
    assert gateway.port.streams == []


async def test_more_than_the_limit_in_flight_is_429() -> None:
    gateway = Gateway(max_in_flight=1)
    first = gateway.open("POST", CHAT, chat())
    stream = await gateway.port.next_stream()
    second = await gateway.post(CHAT, chat())
    assert second.status == 429
    assert second.headers["retry-after"] == "1"
    stream.push(*HELLO)
    assert (await first.reply()).status == 200


async def test_a_draining_gateway_finishes_what_it_has_and_takes_no_more() -> None:
    gateway = Gateway()
    first = gateway.open("POST", CHAT, chat())
    stream = await gateway.port.next_stream()
    gateway.in_flight.is_draining = True
    assert (await gateway.post(CHAT, chat())).status == 503
    stream.push(*HELLO)
    assert (await first.reply()).status == 200


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_request_cut_by_the_stop_is_told_so(has_begun: bool) -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    if has_begun:
        stream.push(Tokens(text="first"))
        await client.has_seen(b"first")
    await gateway.server.stop(1.0)
    reply = client.seen()
    error = reply.events[-1]["error"] if has_begun else reply.error
    assert reply.status == (200 if has_begun else 503)
    assert "shutting down" in error["message"]
    assert stream.cancel_reason is not None


@pytest.mark.parametrize("value", ["0", "-5", "1.5", "x", "99999999999", ""])
async def test_a_budget_that_cannot_be_meant_is_400(gateway: Gateway, value: str) -> None:
    reply = await gateway.post(CHAT, chat(), headers={"x-sage-budget-ms": value})
    assert reply.status == 400
    assert reply.error["param"] == "x-sage-budget-ms"


async def test_the_budget_comes_from_the_header_or_the_settings(gateway: Gateway) -> None:
    await gateway.post(CHAT, chat(), headers={"x-sage-budget-ms": "2500"})
    await gateway.post(CHAT, chat())
    assert [stream.budget_seconds for stream in gateway.port.streams] == [2.5, 120.0]


@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-e2e-ms"])
@pytest.mark.parametrize("value", ["0", "0.0", "-5", "1e3", "abc", "", "99999999999", "1,5", "nan"])
async def test_a_target_that_cannot_be_meant_is_400(gateway: Gateway, name: str, value: str) -> None:
    reply = await gateway.post(CHAT, chat(), headers={name: value})
    assert reply.status == 400
    assert reply.error["param"] == name
    assert "expected milliseconds, more than 0 and at most" in reply.error["message"]


async def test_targets_come_from_the_headers_and_the_route_goes_with_them(gateway: Gateway) -> None:
    gateway.port.answer_with(*HELLO)
    await gateway.post(CHAT, chat(), headers={"x-slo-ttft-ms": "500", "x-slo-tpot-ms": "33.5"})
    await gateway.post(CHAT, chat())
    given, none = gateway.port.streams
    assert given.targets == Targets(ttft_ms=500.0, tpot_ms=33.5)
    assert none.targets == Targets()
    assert given.route == CHAT


async def test_an_unknown_slo_class_is_400(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(), headers={"x-slo-class": "urgent"})
    assert reply.error["param"] == "x-slo-class"


async def test_every_answer_has_a_request_id_also_an_error(gateway: Gateway) -> None:
    for reply in (await gateway.post(CHAT, b"{"), await gateway.call("GET", "/nothing")):
        assert reply.headers["x-request-id"] == reply.headers["x-sage-request-id"]
        assert reply.headers["openai-processing-ms"].isdigit()


async def test_the_clients_request_id_is_shown_beside_ours(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(), headers={"x-client-request-id": "job/7:a"})
    assert reply.headers["x-request-id"] == "job/7:a"
    assert reply.headers["x-sage-request-id"] == reply.json["id"] == gateway.port.streams[0].request_id


@pytest.mark.parametrize("value", ["", "a b", "x" * 513, "a\tb", "ä"])
async def test_a_request_id_that_could_not_be_a_header_is_refused(gateway: Gateway, value: str) -> None:
    reply = await gateway.post(CHAT, chat(), headers={"x-client-request-id": value})
    assert reply.status == 400
    assert reply.error["param"] == "x-client-request-id"


async def test_the_callers_trace_goes_on_below_and_its_id_comes_back(gateway: Gateway) -> None:
    header = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    reply = await gateway.post(CHAT, chat(), headers={"traceparent": header})
    assert reply.headers["x-sage-trace-id"] == TRACE_ID
    assert (gateway.port.streams[0].traceparent or "").split("-")[1] == TRACE_ID


@pytest.mark.parametrize("header", [None, "nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01"])
async def test_without_a_valid_trace_a_new_one_begins_and_unsampled_ones_are_not_shown(
    gateway: Gateway, header: str | None
) -> None:
    reply = await gateway.post(CHAT, chat(), headers={} if header is None else {"traceparent": header})
    assert "x-sage-trace-id" not in reply.headers
    made = gateway.port.streams[0].traceparent
    assert made is not None
    assert made.endswith("-00")
    assert made != header


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("OPTIONS", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/models/tiny", 405),
        ("GET", "/v1/requests/x", 405),
        ("POST", "/v1/audio/speech", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/requestsx", 404),
    ],
)
async def test_unknown_paths_and_methods_have_openai_shaped_errors(
    gateway: Gateway, method: str, path: str, status: int
) -> None:
    reply = await gateway.call(method, path)
    assert reply.status == status
    assert reply.error["type"] == "invalid_request_error"
    assert ("allow" in reply.headers) == (status == 405)


async def test_a_base_url_without_v1_is_told_what_it_misses(gateway: Gateway) -> None:
    reply = await gateway.post("/chat/completions", chat())
    assert reply.status == 404
    assert "/v1/chat/completions" in reply.error["message"]


async def metric(gateway: Gateway, name: str) -> float:
    text = (await gateway.call("GET", "/metrics")).body.decode()
    values = [float(line.split(" ")[-1]) for line in text.splitlines() if line.startswith(name)]
    return sum(values)


async def test_metrics_count_requests_tokens_and_ignored_fields(gateway: Gateway) -> None:
    route = 'route="/v1/chat/completions"'
    names = [
        f'sage_gateway_requests_total{{{route},status="200"}}',
        f'sage_gateway_requests_total{{{route},status="400"}}',
        'sage_gateway_requests_total{route="unknown",status="404"}',
        f"sage_gateway_time_to_first_token_seconds_count{{{route}}}",
        'sage_gateway_tokens_total{kind="completion"}',
        f"sage_gateway_ignored_fields_total{{{route}}}",
    ]
    before = [await metric(gateway, name) for name in names]
    await gateway.post(CHAT, chat(stream=True, colour=3, taste=0.5, user="known"))
    await gateway.post(CHAT, chat(n=17))
    await gateway.call("GET", "/x/y/z")
    after = [await metric(gateway, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 1, 2, 2]


async def test_a_client_that_left_counts_as_499() -> None:
    gateway = Gateway()
    name = 'sage_gateway_requests_total{route="/v1/chat/completions",status="499"}'
    before = await metric(gateway, name)
    client = gateway.open("POST", CHAT, chat())
    await gateway.port.next_stream()
    client.disconnect()
    assert await metric(gateway, name) == before + 1
    assert await metric(gateway, "sage_gateway_in_flight") == 0


async def test_prompts_and_keys_are_never_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    gateway = Gateway(keys_file=write_keys(tmp_path, mine=KEY))
    headers = {"authorization": f"Bearer {KEY}"}
    body: dict[str, Any] = chat(messages=[{"role": "user", "content": "canary-7"}])
    gateway.port.fail_with(RuntimeError("bug"))
    await gateway.post(CHAT, body, headers=headers)
    gateway.port.answer_with(*HELLO)
    await gateway.post(CHAT, body, headers=headers)
    await gateway.post(CHAT, body, headers={"authorization": "Bearer canary-7"})
    out = capsys.readouterr()
    logged = out.out + out.err + caplog.text
    assert "request_crashed" in logged
    assert "canary-7" not in logged
    assert KEY not in logged


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd, gzip"])
async def test_a_compressed_body_is_refused_unread(gateway: Gateway, coding: str) -> None:
    reply = await gateway.post(CHAT, b"\x1f\x8b", headers={"content-encoding": coding})
    assert reply.status == 415
    assert reply.error["code"] == "unknown_content_encoding"
    assert gateway.port.streams == []


async def test_a_query_changes_no_route(gateway: Gateway) -> None:
    assert (await gateway.post(f"{CHAT}?api-version=2024-10-21", chat())).status == 200


async def test_every_answer_has_a_date_and_names_its_request(gateway: Gateway) -> None:
    for path in (CHAT, "/v1/models", "/nothing"):
        headers = (await gateway.post(path, chat())).headers
        assert headers["date"].endswith(" GMT")
        assert headers["x-sage-request-id"]
        assert int(headers["openai-processing-ms"]) >= 0
