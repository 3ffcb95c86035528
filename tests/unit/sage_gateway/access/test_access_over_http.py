"""Keys, rights, quotas and CORS as a client meets them: through the whole application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway_driver import HELLO, Gateway, chat, write_keys

CHAT = "/v1/chat/completions"
KEY = "sk-sage-of-the-test"
HEADERS = {"authorization": f"Bearer {KEY}", "host": "sage.example.org"}


def keyed(folder: Path, rights: str = "", **settings: Any) -> Gateway:
    """A gateway with one key, `website`, that has `rights` (TOML)."""
    path = write_keys(folder, website=KEY)
    path.write_text(path.read_text() + rights)
    gateway = Gateway(keys_file=path, **settings)
    gateway.port.answer_with(*HELLO)
    return gateway


async def test_every_route_but_liveness_asks_for_a_key(tmp_path: Path) -> None:
    gateway = keyed(tmp_path)
    assert len(gateway.routes) > 8
    public = []
    for route in gateway.routes:
        path = route.name.replace("{id}", "some-id")
        for method in (*route.methods, "OPTIONS", "PATCH"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
                reply = await gateway.call(method, path, b"" if method == "GET" else b"{}", headers=headers)
                if route.is_public:
                    public.append(route.name)
                    assert reply.status != 401
                else:
                    assert reply.status == 401, (method, route.name)
                    assert reply.headers["www-authenticate"] == 'Bearer realm="sage"'
                    if method != "HEAD":
                        assert reply.error["code"] == "invalid_api_key"
    assert set(public) == {"/healthz"}
    assert gateway.port.streams == []


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/", "/v1/models/../x", "//healthz", "/healthz/", "/HEALTHZ"]
)
async def test_what_exists_is_not_told_to_strangers(tmp_path: Path, path: str) -> None:
    gateway = keyed(tmp_path)
    assert (await gateway.call("GET", path)).status == 401


async def test_a_key_opens_every_route(tmp_path: Path) -> None:
    gateway = keyed(tmp_path)
    for route in gateway.routes:
        reply = await gateway.call(
            route.methods[0], route.name.replace("{id}", "tiny"), b"{}", headers=HEADERS
        )
        assert reply.status not in (401, 403), route.name


async def test_a_key_is_checked_before_the_body_is_read(tmp_path: Path) -> None:
    gateway = keyed(tmp_path)
    client = gateway.open("POST", CHAT, headers={"content-length": "1000"})
    assert (await client.reply()).status == 401


async def test_the_tenant_of_the_key_owns_the_work(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, 'tenant = "acme"\n')
    assert (await gateway.post(CHAT, chat(), headers=HEADERS)).status == 200
    assert gateway.port.streams[0].tenant == "acme"


async def test_a_model_outside_of_the_key_is_as_unknown_as_one_that_does_not_exist(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, 'models = ["pipeline/*"]\n')
    other = await gateway.post(CHAT, chat(model="tiny"), headers=HEADERS)
    absent = await gateway.post(CHAT, chat(model="none"), headers=HEADERS)
    assert (
        (other.status, other.error["code"])
        == (absent.status, absent.error["code"])
        == (404, "model_not_found")
    )
    assert other.error["message"].replace("tiny", "none") == absent.error["message"]
    assert "tiny" not in absent.error["message"]
    assert (await gateway.call("GET", "/v1/models/tiny", headers=HEADERS)).status == 404
    listed = (await gateway.call("GET", "/v1/models", headers=HEADERS)).json["data"]
    assert [model["id"] for model in listed] == ["pipeline/rag-docs"]
    assert gateway.port.streams == []


async def test_a_key_gets_its_own_class_and_no_other(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, 'classes = ["normal", "batch"]\n')
    await gateway.post(CHAT, chat(), headers=HEADERS)
    await gateway.post(CHAT, chat(service_tier="flex"), headers=HEADERS)
    assert [stream.slo_class for stream in gateway.port.streams] == ["normal", "batch"]
    reply = await gateway.post(CHAT, chat(), headers=HEADERS | {"x-slo-class": "interactive"})
    assert (reply.status, reply.error["code"]) == (403, "slo_class_not_allowed")
    assert len(gateway.port.streams) == 2


async def test_a_quota_is_shown_and_kept(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, "rpm = 2\ntpm = 1000\n")
    first = await gateway.post(CHAT, chat(max_tokens=100), headers=HEADERS)
    assert first.status == 200
    shown = {name: value for name, value in first.headers.items() if name.startswith("x-ratelimit-")}
    assert shown.keys() == {
        f"x-ratelimit-{what}-{unit}"
        for what in ("limit", "remaining", "reset")
        for unit in ("requests", "tokens")
    }
    assert shown["x-ratelimit-limit-requests"] == "2"
    assert shown["x-ratelimit-remaining-requests"] == "1"
    assert 850 <= int(shown["x-ratelimit-remaining-tokens"]) <= 900
    second = await gateway.post(CHAT, chat(max_tokens=100), headers=HEADERS)
    # What the first reserved and did not use (it used 9 tokens) is back.
    assert int(second.headers["x-ratelimit-remaining-tokens"]) > 850
    third = await gateway.post(CHAT, chat(max_tokens=100), headers=HEADERS)
    assert (third.status, third.error["code"]) == (429, "rate_limit_exceeded")
    assert third.headers["x-should-retry"] == "true"
    assert 55 <= int(third.headers["retry-after"]) <= 61
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(gateway.port.streams) == 2


async def test_a_request_larger_than_the_quota_is_refused_for_good(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, "tpm = 50\n")
    reply = await gateway.post(CHAT, chat(max_tokens=100), headers=HEADERS)
    assert reply.status == 429
    assert reply.headers["x-should-retry"] == "false"
    assert "retry-after" not in reply.headers


async def test_a_list_of_prompts_is_one_request_of_its_quota(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, "rpm = 2\nconcurrency = 1\n")
    body = {"model": "auto", "prompt": ["a", "b", "c"], "max_tokens": 5}
    reply = await gateway.post("/v1/completions", body, headers=HEADERS)
    assert reply.status == 200, reply.error
    assert reply.headers["x-ratelimit-remaining-requests"] == "1"
    assert len(gateway.port.streams) == 3


async def test_concurrency_is_free_again_when_a_client_leaves(tmp_path: Path) -> None:
    gateway = keyed(tmp_path, "concurrency = 1\n")
    gateway.port.answer = lambda stream: None
    client = gateway.open("POST", CHAT, chat(stream=True), headers=HEADERS)
    await gateway.port.next_stream()
    assert (await gateway.post(CHAT, chat(), headers=HEADERS)).status == 429
    client.disconnect()
    await client.is_left()
    gateway.port.answer_with(*HELLO)
    assert (await gateway.post(CHAT, chat(), headers=HEADERS)).status == 200


async def test_a_key_without_a_quota_shows_no_limits(tmp_path: Path) -> None:
    reply = await keyed(tmp_path).post(CHAT, chat(), headers=HEADERS)
    assert not [name for name in reply.headers if name.startswith("x-ratelimit-")]


async def test_cors_is_off_unless_origins_are_set(tmp_path: Path) -> None:
    gateway = keyed(tmp_path)
    asked = HEADERS | {"origin": "https://app.example", "access-control-request-method": "POST"}
    for method in ("OPTIONS", "POST"):
        reply = await gateway.call(method, CHAT, chat(), headers=asked)
        assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert reply.status == 200


async def test_a_page_of_a_named_origin_asks_without_a_key_and_reads_answers_and_errors(
    tmp_path: Path,
) -> None:
    gateway = keyed(tmp_path, cors_origins=("https://app.example",))
    page = {"origin": "https://app.example", "host": "sage.example.org"}
    asked = page | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = await gateway.call("OPTIONS", CHAT, headers=asked)
    assert (preflight.status, preflight.body) == (204, b"")
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    for headers, status in ((page | HEADERS, 200), (page, 401)):
        reply = await gateway.post(CHAT, chat(), headers=headers)
        assert reply.status == status
        for answer in (reply, preflight):
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert answer.headers["vary"] == "origin"
            assert "access-control-allow-credentials" not in answer.headers
    evil = await gateway.call("OPTIONS", CHAT, headers=asked | {"origin": "https://evil.example"})
    assert evil.status == 401
    assert "access-control-allow-origin" not in evil.headers
