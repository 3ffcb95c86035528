"""What an error is in HTTP: the only place where SAGE's codes become statuses and OpenAI error bodies.

https://platform.openai.com/docs/guides/error-codes
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import msgspec

from sage_core import SageError

__all__ = ["CLIENT_CLOSED", "HttpError", "HttpRefused", "describe", "error_body"]

CLIENT_CLOSED: Final = 499
"""Status of a request that its caller ended; nginx's number, as HTTP has none."""


@dataclass(frozen=True, slots=True)
class HttpError:
    """One error answer. `retry_after` is in seconds; `headers` are sent beside the standard ones."""

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    retryable: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = field(default=())

    def head(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that go with this answer.

        `x-should-retry` is read by the OpenAI clients, which otherwise repeat every 5xx: a request that ran out
        of its budget would be run three times.
        """
        headers = [*self.headers, (b"x-should-retry", b"true" if self.retryable else b"false")]
        if self.retry_after is not None:
            seconds = max(self.retry_after, 0.0)
            headers.append((b"retry-after", str(max(1, math.ceil(seconds))).encode()))
            headers.append((b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()))
        return headers


class HttpRefused(Exception):
    """Refused by HTTP's own rules, before there is any work: method, route, key, size, pace."""

    def __init__(
        self,
        status: int,
        type_: str,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.http_error = HttpError(status, type_, code, message, param=param, headers=headers)


_INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"

_BY_CODE: Final[dict[str, tuple[int, str, str]]] = {
    "bad_request": (400, _INVALID, "invalid_value"),
    "context_length_exceeded": (400, _INVALID, "context_length_exceeded"),
    "limit_exceeded": (400, _INVALID, "limit_exceeded"),
    "not_found": (404, _INVALID, "not_found"),
    "conflict": (409, _INVALID, "conflict"),
    "cancelled": (CLIENT_CLOSED, "request_cancelled", "request_cancelled"),
    "deadline_exceeded": (504, "timeout_error", "deadline_exceeded"),
    "overloaded": (429, "rate_limit_error", "overloaded"),
    "unavailable": (503, _SERVER, "unavailable"),
    "worker_lost": (503, _SERVER, "worker_lost"),
    "actor_restarted": (503, _SERVER, "actor_restarted"),
    "bus_unavailable": (503, _SERVER, "bus_unavailable"),
    "bus_error": (500, _SERVER, "bus_error"),
    "engine_error": (500, _SERVER, "engine_error"),
    "configuration_error": (500, _SERVER, "configuration_error"),
    "internal": (500, _SERVER, "internal_error"),
}


def describe(error: SageError) -> HttpError:
    """Return the answer for `error`. Retryable errors always carry a Retry-After, of 1 s where none is known."""
    status, type_, code = _BY_CODE.get(error.code, _BY_CODE["internal"])
    if error.code == "not_found" and error.param == "model":
        code = "model_not_found"
    retry_after = error.retry_after
    if retry_after is None and error.retryable:
        retry_after = 1.0
    return HttpError(
        status,
        type_,
        code,
        error.message,
        param=error.param,
        retry_after=retry_after,
        retryable=error.retryable,
    )


class _ErrorFields(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorFields


_encoder = msgspec.json.Encoder()


def error_body(error: HttpError) -> bytes:
    """Return `{"error": {message, type, param, code}}`. Text that is not Unicode is replaced, never an error."""
    message = error.message.encode("utf-8", "replace").decode()
    param = None if error.param is None else error.param.encode("utf-8", "replace").decode()
    return _encoder.encode(_ErrorBody(_ErrorFields(message, error.type, param, error.code)))
