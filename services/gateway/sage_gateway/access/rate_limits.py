"""Quotas in HTTP: the `x-ratelimit-*` headers as OpenAI formats them, and what a refused request is answered.

https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from sage_gateway.access.quota import Ask, Decision, Limit, Quota
from sage_gateway.errors import HttpRefused

__all__ = ["quota_refused", "quota_unavailable", "rate_limit_headers"]

_UNAVAILABLE_RETRY_SECONDS: Final = 1.0


class QuotaRefused(HttpRefused):
    """A refusal that tells when to come again; None: never with this request."""

    def __init__(
        self,
        status: int,
        type_: str,
        code: str,
        message: str,
        *,
        retry_after: float | None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(status, type_, code, message, headers=headers)
        self.http_error = replace(self.http_error, retry_after=retry_after, retryable=retry_after is not None)


def rate_limit_headers(quota: Quota, decision: Decision) -> tuple[tuple[bytes, bytes], ...]:
    """Return limit, what remains and time until all of it is free again, for requests and tokens where limited."""
    headers: list[tuple[bytes, bytes]] = []
    for name, limit, remaining, reset in (
        (b"requests", quota.requests_per_minute, decision.remaining_requests, decision.reset_requests),
        (b"tokens", quota.tokens_per_minute, decision.remaining_tokens, decision.reset_tokens),
    ):
        if limit is not None:
            headers += (
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % (remaining or 0)),
                (b"x-ratelimit-reset-" + name, duration(reset)),
            )
    return tuple(headers)


def quota_refused(ask: Ask, decision: Decision) -> HttpRefused:
    """Return 429 for a request over its key's quota. One that is larger than the limit is not to be tried again."""
    quota, wait = ask.quota, decision.retry_after
    when = "" if wait is None else f"; try again in {duration(wait).decode()}"
    match decision.refused_by:
        case Limit.TOKENS if wait is None:
            message = (
                f"the request needs {ask.num_tokens} tokens, prompt and answer together; this key may use "
                f"{quota.tokens_per_minute} per minute: send less, or ask for fewer with max_tokens"
            )
        case Limit.TOKENS:
            message = (
                f"the limit of this key is {quota.tokens_per_minute} tokens per minute, of which "
                f"{decision.remaining_tokens} are left; the request needs {ask.num_tokens}{when}"
            )
        case Limit.CONCURRENCY:
            message = f"this key may have {quota.concurrency} requests open at once{when}"
        case _:
            message = f"the limit of this key is {quota.requests_per_minute} requests per minute{when}"
    return QuotaRefused(
        429,
        "tokens" if decision.refused_by is Limit.TOKENS else "requests",
        "rate_limit_exceeded",
        message,
        retry_after=wait,
        headers=rate_limit_headers(quota, decision),
    )


def quota_unavailable(timeout: float) -> HttpRefused:
    """Return 503 for a request whose quota could not be asked for: without a decision nothing is let through."""
    return QuotaRefused(
        503,
        "server_error",
        "quota_unavailable",
        f"the quota of this key could not be checked within {timeout:g} s; try again",
        retry_after=_UNAVAILABLE_RETRY_SECONDS,
    )


def duration(seconds: float) -> bytes:
    """Return a time as OpenAI writes it: `0s`, `17ms`, `8.64s`, `6m0s`. Rounded up, to milliseconds under a minute."""
    milliseconds = max(0, math.ceil(seconds * 1000))
    if 0 < milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, rest = divmod(milliseconds, 60_000)
    if minutes:
        return b"%dm%ds" % (minutes, math.ceil(rest / 1000))
    return f"{rest / 1000:g}s".encode()
