"""A streamed chat through the gateway's OpenAI endpoint: server-sent events to typed parts, with httpx alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import msgspec

from sage_cli.exits import fail

__all__ = ["AnswerEnd", "AnswerText", "ChatEndpoint", "SourceList", "SourcePart"]


class SourcePart(msgspec.Struct, frozen=True):
    """A passage that an answer rests on."""

    source: str
    score: float = 0.0
    position: int = 0
    title: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class SourceList:
    """The passages of the answer, best first."""

    sources: list[SourcePart]


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The answer is complete."""

    finish_reason: str
    model: str
    request_id: str
    trace_id: str | None
    prompt_tokens: int
    completion_tokens: int


class _DeltaBody(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _DeltaBody = msgspec.field(default_factory=_DeltaBody)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _ErrorBody(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    id: str = ""
    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    sources: list[SourcePart] = []
    error: _ErrorBody | None = None


class _ErrorReply(msgspec.Struct):
    error: _ErrorBody


class ChatEndpoint:
    """`POST /v1/chat/completions` of one gateway; use as an async context manager."""

    def __init__(
        self, base_url: str, api_key: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # trust_env is off: a proxy of the environment must not see what is said to a loopback gateway.
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            transport=transport,
            trust_env=False,
            timeout=httpx.Timeout(300.0, connect=5.0),
        )
        self._base_url = base_url

    async def __aenter__(self) -> ChatEndpoint:
        """Return itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections; an answer that still streams is cancelled at the gateway."""
        await self._client.aclose()

    async def stream(
        self,
        model: str,
        messages: list[dict[str, str]],
        *,
        max_tokens: int | None = None,
        parameters: dict[str, str] | None = None,
    ) -> AsyncIterator[AnswerText | SourceList | AnswerEnd]:
        """Yield the answer's parts as they arrive, `AnswerEnd` last. Fails with the gateway's own message.

        `parameters` are those that a pipeline declares; plain models have none.
        Closing the iterator closes the connection, which cancels the request in every phase.
        """
        body: dict[str, object] = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if parameters:
            body["parameters"] = parameters
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    fail(_error_text(response.status_code, await response.aread()))
                async for part in _parts(response):
                    yield part
        except httpx.ConnectError:
            fail(f"no gateway answers at {self._base_url}; is one running? see `sage status`")
        except httpx.HTTPError as error:
            fail(f"the gateway at {self._base_url} broke off: {error or type(error).__name__}")


async def _parts(response: httpx.Response) -> AsyncIterator[AnswerText | SourceList | AnswerEnd]:
    finish_reason, model, request_id, usage = "", "", "", _Usage()
    is_done = False
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            is_done = True
            break
        chunk = _decode(data)
        if chunk.error is not None:
            fail(f"the answer broke off: {chunk.error.message}")
        model, request_id, usage = chunk.model or model, chunk.id or request_id, chunk.usage or usage
        if chunk.sources:
            yield SourceList(chunk.sources)
        for choice in chunk.choices:
            if choice.delta.content:
                yield AnswerText(choice.delta.content)
            finish_reason = choice.finish_reason or finish_reason
    if not is_done and not finish_reason:
        fail("the answer broke off: the connection ended before `[DONE]`")
    yield AnswerEnd(
        finish_reason,
        model,
        request_id,
        response.headers.get("x-sage-trace-id"),
        usage.prompt_tokens,
        usage.completion_tokens,
    )


def _decode(data: str) -> _Chunk:
    try:
        return msgspec.json.decode(data, type=_Chunk)
    except msgspec.MsgspecError as error:
        fail(f"the gateway sent what is no chat chunk: {error}")


def _error_text(status: int, body: bytes) -> str:
    with contextlib.suppress(msgspec.MsgspecError):
        return f"{msgspec.json.decode(body, type=_ErrorReply).error.message} (HTTP {status})"
    return f"the gateway answered with HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
