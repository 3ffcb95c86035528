from __future__ import annotations

import pytest

from sage_gateway.access.quota import EMPTY, Ask, Limit, Quota, decide
from sage_gateway.access.rate_limits import duration, quota_refused, rate_limit_headers


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, b"0s"), (-1, b"0s"), (0.017, b"17ms"), (0.0001, b"1ms"), (1, b"1s"), (8.64, b"8.64s"), (59.9999, b"1m0s"),
     (60, b"1m0s"), (60.2, b"1m1s"), (360, b"6m0s")],
)  # fmt: skip
def test_durations_are_written_as_openai_writes_them(seconds: float, written: bytes) -> None:
    assert duration(seconds) == written


def test_only_what_is_limited_is_told() -> None:
    quota = Quota(tokens_per_minute=100)
    _, decision = decide(EMPTY, Ask(quota, "a", 30), 1000.0)
    assert rate_limit_headers(quota, decision) == (
        (b"x-ratelimit-limit-tokens", b"100"),
        (b"x-ratelimit-remaining-tokens", b"70"),
        (b"x-ratelimit-reset-tokens", b"1m1s"),
    )


@pytest.mark.parametrize(
    ("quota", "limit", "type_"),
    [
        (Quota(requests_per_minute=1), Limit.REQUESTS, "requests"),
        (Quota(tokens_per_minute=30), Limit.TOKENS, "tokens"),
        (Quota(concurrency=1), Limit.CONCURRENCY, "requests"),
    ],
)
def test_a_refusal_tells_when_to_come_again(quota: Quota, limit: Limit, type_: str) -> None:
    ask = Ask(quota, "a", 30)
    state, _ = decide(EMPTY, ask, 1000.0)
    _, decision = decide(state, ask, 1001.0)
    assert decision.refused_by is limit
    error = quota_refused(ask, decision).http_error
    assert (error.status, error.type, error.code, error.retryable) == (
        429,
        type_,
        "rate_limit_exceeded",
        True,
    )
    assert error.retry_after == (1.0 if limit is Limit.CONCURRENCY else 60.0)


def test_a_request_larger_than_its_limit_is_not_to_be_repeated() -> None:
    ask = Ask(Quota(tokens_per_minute=30), "a", 31)
    _, decision = decide(EMPTY, ask, 1000.0)
    head = dict(quota_refused(ask, decision).http_error.head())
    assert head[b"x-should-retry"] == b"false"
    assert b"retry-after" not in head
