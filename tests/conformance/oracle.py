"""OpenAI's own types as the judge of every response: each body and each event of a stream, strictly.

A type of the `openai` package accepts fields that it does not know; here these must be on the list of SAGE's own
(extensions.toml). Beside the types: error bodies, the order of stream events, and the headers that every answer has.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import openai.types as types
import openai.types.chat as chat_types
import openai.types.responses as response_types
from openai.types import completion_choice
from pydantic import BaseModel, TypeAdapter, ValidationError

from conformance.environments import HERE
from conformance.outcome import Failure, Outcome
from conformance.recorder import Exchange

__all__ = ["judge", "problems"]

_STREAM_EVENT: Any = response_types.ResponseStreamEvent


class _ModelList(BaseModel):
    object: str
    data: list[types.Model]


class _EchoedLogprobs(completion_choice.Logprobs):
    """The first token of an echoed prompt has no probability; OpenAI's type knows no null there, its API does."""

    token_logprobs: list[float | None] | None = None  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None] | None = None  # type: ignore[assignment]


class _Choice(types.CompletionChoice):
    logprobs: _EchoedLogprobs | None = None


class _Completion(types.Completion):
    choices: list[_Choice]  # type: ignore[assignment]


class _StreamedChoice(_Choice):
    """A choice of a streamed completion: OpenAI's type is that of the whole answer, where a reason is always given."""

    finish_reason: Any = None


class _StreamedCompletion(types.Completion):
    choices: list[_StreamedChoice]  # type: ignore[assignment]


_BODIES: list[tuple[str, str, Any]] = [
    ("POST", r"/v1/chat/completions", chat_types.ChatCompletion),
    ("POST", r"/v1/completions", _Completion),
    ("POST", r"/v1/embeddings", types.CreateEmbeddingResponse),
    ("GET", r"/v1/models", _ModelList),
    ("GET", r"/v1/models/.+", types.Model),
    ("POST", r"/v1/responses", response_types.Response),
    ("GET", r"/v1/responses/[^/]+", response_types.Response),
    ("POST", r"/v1/responses/[^/]+/cancel", response_types.Response),
    ("GET", r"/v1/responses/[^/]+/input_items", response_types.ResponseItemList),
]
_EVENTS: dict[str, Any] = {
    "/v1/chat/completions": chat_types.ChatCompletionChunk,
    "/v1/completions": _StreamedCompletion,
    "/v1/responses": _STREAM_EVENT,
}


def judge(name: str, exchanges: Iterable[Exchange]) -> Outcome:
    """Check every exchange; equal complaints are counted once."""
    outcome = Outcome(f"openai.types: {name}", versions={"openai": _version()})
    complaints: Counter[str] = Counter()
    num_exchanges = 0
    examples: dict[str, str] = {}
    for exchange in exchanges:
        num_exchanges += 1
        found = list(problems(exchange))
        if not found:
            outcome.num_passed += 1
        for problem in found:
            key = f"{exchange.method} {_shape(exchange.path)} {exchange.status}: {problem}"
            complaints[key] += 1
            examples.setdefault(key, _excerpt(exchange))
    for key, count in complaints.items():
        outcome.failures.append(Failure(f"{key} ({count} times)", examples[key]))
    outcome.notes.append(f"{num_exchanges} responses were judged; equal complaints count as one failure.")
    return outcome


def problems(exchange: Exchange) -> Iterator[str]:
    """Yield what is wrong with one response."""
    yield from _header_problems(exchange)
    kind = exchange.headers.get("content-type", "").partition(";")[0]
    if exchange.status >= 400:
        yield from _error_problems(exchange)
    elif kind == "text/event-stream":
        yield from _stream_problems(exchange)
    elif exchange.is_complete and exchange.status == 200:
        for method, path, wanted in _BODIES:
            if method == exchange.method and re.fullmatch(path, exchange.path):
                yield from _type_problems(exchange.path, wanted, exchange.body)


def _header_problems(exchange: Exchange) -> Iterator[str]:
    if exchange.path.startswith("/v1/") and "x-request-id" not in exchange.headers:
        yield "no x-request-id"
    if exchange.status in (429, 503) and "retry-after" not in exchange.headers:
        yield "no retry-after"


def _error_problems(exchange: Exchange) -> Iterator[str]:
    if not exchange.is_complete or exchange.method == "HEAD":
        return
    if exchange.status == 422:
        yield "status 422"
    try:
        body = json.loads(exchange.body)
    except ValueError:
        yield "the error is not JSON"
        return
    yield from _wrong_error(body)


def _wrong_error(body: Any) -> Iterator[str]:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        yield "no error object"
        return
    if missing := {"message", "type", "param", "code"} - error.keys():
        yield f"the error has no {', '.join(sorted(missing))}"
    if not (isinstance(error.get("message"), str) and error["message"]):
        yield "the error has no text"
    for name in ("type", "param", "code"):
        if not isinstance(error.get(name), str | None):
            yield f"error.{name} is no text"


def _type_problems(path: str, wanted: Any, body: bytes) -> Iterator[str]:
    if wanted is types.CreateEmbeddingResponse:
        body = _with_floats(body)
    try:
        found = _adapter(wanted).validate_json(body, strict=True)
    except ValidationError as error:
        for each in error.errors()[:3]:
            yield f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
        return
    allowed = _extensions()
    for field in _unknown_fields(found):
        if not any(re.fullmatch(route, path) and field in fields for route, fields in allowed):
            yield f"unknown field {field}"


def _with_floats(body: bytes) -> bytes:
    """Unpack base64 vectors, which the client's type knows only unpacked."""
    found = json.loads(body)
    for each in found.get("data", ()):
        if isinstance(each.get("embedding"), str):
            packed = base64.b64decode(each["embedding"], validate=True)
            each["embedding"] = list(struct.unpack(f"<{len(packed) // 4}f", packed))
    return json.dumps(found).encode()


def _unknown_fields(found: Any, place: str = "") -> Iterator[str]:
    if isinstance(found, BaseModel):
        for name in found.model_extra or {}:
            yield f"{place}.{name}".lstrip(".")
        for name in type(found).model_fields:
            yield from _unknown_fields(getattr(found, name), f"{place}.{name}")
    elif isinstance(found, list):
        seen = {field for each in found for field in _unknown_fields(each, f"{place}[]")}
        yield from sorted(seen)


def _stream_problems(exchange: Exchange) -> Iterator[str]:
    wanted = _EVENTS.get(exchange.path)
    if wanted is None:
        return
    events = list(_events(exchange.body))
    failed, is_done = False, False
    payloads = []
    for name, data in events:
        if is_done:
            yield "an event after [DONE]"
        if data == "[DONE]":
            is_done = True
            continue
        payload = json.loads(data)
        if (
            isinstance(payload, dict)
            and "error" in payload
            and "choices" not in payload
            and "type" not in payload
        ):
            failed = True
            yield from _wrong_error(payload)
            continue
        payloads.append(payload)
        if wanted is _STREAM_EVENT and name != payload.get("type"):
            yield f"event {name} carries {payload.get('type')}"
        for problem in _type_problems(exchange.path, wanted, data.encode()):
            yield f"{payload['type']}: {problem}" if wanted is _STREAM_EVENT else problem
    if not exchange.is_complete:
        return
    if wanted is _STREAM_EVENT:
        yield from _response_order(payloads)
    else:
        if is_done == failed:
            yield "[DONE] after an error" if failed else "no [DONE]"
        if not failed:
            yield from _choice_order(payloads, is_chat=exchange.path.startswith("/v1/chat"))


def _choice_order(payloads: list[Any], *, is_chat: bool) -> Iterator[str]:
    choices: dict[int, list[Any]] = {}
    for payload in payloads:
        for choice in payload["choices"]:
            choices.setdefault(choice["index"], []).append(choice)
    for index, parts in choices.items():
        reasons = [part["finish_reason"] for part in parts if part["finish_reason"] is not None]
        if len(reasons) != 1 or parts[-1]["finish_reason"] is None:
            yield f"finish reasons of choice {min(index, 1)}: {reasons}"
        if is_chat and parts[0]["delta"].get("role") != "assistant":
            yield "no role in the first delta"
    if len({payload["id"] for payload in payloads}) > 1:
        yield "more than one id"


def _response_order(payloads: list[Any]) -> Iterator[str]:
    if [payload.get("sequence_number") for payload in payloads] != list(range(len(payloads))):
        yield "sequence numbers are not 0, 1, 2, …"
    last = payloads[-1]["type"] if payloads else "none"
    if last not in ("response.completed", "response.incomplete", "response.failed"):
        yield f"the last event is {last}"


def _events(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield name and data of each whole event, as the SSE specification reads a stream; comments are left out."""
    for block in body.decode().replace("\r\n", "\n").split("\n\n")[:-1]:
        name, data = "message", []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
        if data:
            yield name, "\n".join(data)


@cache
def _adapter(wanted: Any) -> TypeAdapter[Any]:
    return TypeAdapter(wanted)


@cache
def _extensions() -> list[tuple[str, frozenset[str]]]:
    with open(HERE / "extensions.toml", "rb") as file:
        found = tomllib.load(file)
    return [(rule["path"], frozenset(rule["fields"])) for rule in found["extension"]]


def _version() -> str:
    import openai

    return openai.__version__


def _shape(path: str) -> str:
    return re.sub(r"/(resp|chatcmpl|cmpl|req)[_-][^/]+", "/{id}", path)


def _excerpt(exchange: Exchange) -> str:
    asked = exchange.request_body[:600].decode(errors="replace")
    return f"asked {asked} got {exchange.body[:600].decode(errors='replace')}"
