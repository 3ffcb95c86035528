from __future__ import annotations

import pytest

from sage_core import ConfigurationError, load_settings
from sage_gateway import GatewaySettings
from sage_gateway.access.cors import Cors

APP, OTHER = b"https://app.example", b"https://evil.example"
ASKING = {
    b"origin": APP,
    b"access-control-request-method": b"POST",
    b"access-control-request-headers": b"authorization,content-type,x-stainless-lang",
}


def test_off_means_no_header_and_no_preflight() -> None:
    cors = Cors(())
    assert not cors.is_on
    assert cors.headers(APP) == ()
    assert cors.preflight(ASKING) is None


def test_a_named_origin_may_read_answers_and_their_limits() -> None:
    headers = dict(Cors(("https://app.example",)).headers(APP))
    assert headers[b"access-control-allow-origin"] == APP
    assert headers[b"vary"] == b"origin"
    exposed = headers[b"access-control-expose-headers"].split(b", ")
    assert {b"x-request-id", b"x-ratelimit-remaining-tokens", b"retry-after"} <= set(exposed)


@pytest.mark.parametrize(
    "origin", [OTHER, b"https://app.example.evil.example", b"http://app.example", b"null", None]
)
def test_another_origin_is_told_nothing_and_caches_keep_them_apart(origin: bytes | None) -> None:
    cors = Cors(("https://app.example",))
    assert cors.headers(origin) == ((b"vary", b"origin"),)
    if origin is not None:
        assert cors.preflight(ASKING | {b"origin": origin}) is None


def test_a_preflight_allows_what_the_page_asks_for() -> None:
    answer = Cors(("https://app.example",)).preflight(ASKING)
    assert answer is not None
    headers = dict(answer)
    assert headers[b"access-control-allow-headers"] == ASKING[b"access-control-request-headers"]
    assert b"DELETE" in headers[b"access-control-allow-methods"]


def test_options_that_is_no_preflight_is_an_ordinary_request() -> None:
    assert Cors(("https://app.example",)).preflight({b"origin": APP}) is None


def test_a_preflight_repeats_nothing_that_could_split_headers() -> None:
    asked = ASKING | {b"access-control-request-headers": b"x\r\nset-cookie: a=b"}
    answer = Cors(("https://app.example",)).preflight(asked)
    assert answer is not None
    assert b"set-cookie" not in b"".join(value for _, value in answer)


@pytest.mark.parametrize("origins", [("*",), ("https://app.example",), ("*", "https://app.example")])
def test_credentials_are_never_allowed(origins: tuple[str, ...]) -> None:
    cors = Cors(origins)
    for headers in (cors.headers(APP), cors.headers(OTHER), cors.headers(None), cors.preflight(ASKING) or ()):
        assert b"access-control-allow-credentials" not in dict(headers)
    if "*" in origins:
        assert dict(cors.headers(OTHER))[b"access-control-allow-origin"] == b"*"


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://App.example", "*.example", ""]
)
def test_what_no_browser_sends_as_an_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="is no origin"):
        load_settings(GatewaySettings, environ={"SAGE_GATEWAY__CORS_ORIGINS": f'["{origin}"]'})
