"""The streamed answer as typed parts; a broken stream is an error, never a short answer."""

from __future__ import annotations

import json

import httpx
import pytest

from sage_cli.exits import CommandFailed
from sage_cli.openai_stream import AnswerEnd, AnswerText, ChatEndpoint, SourceList

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def sse(*chunks: object, done: bool = True) -> bytes:
    body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    return b": keep-alive\n\n" + body + (b"data: [DONE]\n\n" if done else b"")


def delta(content: str | None = None, finish: str | None = None, **extra: object) -> dict[str, object]:
    found = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": found, "finish_reason": finish}
    return {"id": "chatcmpl-1", "model": "m", "choices": [choice], **extra}


async def parts(
    status: int, body: bytes, sent: list[httpx.Request] | None = None, **options: object
) -> list[object]:
    def answer(request: httpx.Request) -> httpx.Response:
        if sent is not None:
            sent.append(request)
        return httpx.Response(status, content=body, headers={"x-sage-trace-id": TRACE})

    async with ChatEndpoint("http://gateway", "key", transport=httpx.MockTransport(answer)) as endpoint:
        return [part async for part in endpoint.stream("m", [{"role": "user", "content": "hi"}], **options)]  # type: ignore[arg-type]


async def test_text_sources_and_end_arrive_typed_and_in_order() -> None:
    body = sse(
        delta(""),
        delta("Hel"),
        delta(sources=[{"source": "a.md", "title": None, "position": 2, "score": 0.5, "text": "t"}]),
        delta("lo"),
        delta(finish="stop"),
        {
            "id": "chatcmpl-1",
            "model": "m",
            "choices": [],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        },
    )
    first, sources, second, end = await parts(200, body)
    assert (first, second) == (AnswerText("Hel"), AnswerText("lo"))
    assert isinstance(sources, SourceList)
    assert [(each.source, each.position) for each in sources.sources] == [("a.md", 2)]
    assert end == AnswerEnd("stop", "m", "chatcmpl-1", TRACE, 3, 2)


async def test_parameters_go_to_a_pipeline_and_the_key_into_the_header() -> None:
    sent: list[httpx.Request] = []
    await parts(200, sse(delta(finish="stop")), sent, parameters={"collection": "docs"}, max_tokens=5)
    body = json.loads(sent[0].content)
    assert (body["parameters"], body["max_tokens"], body["stream"]) == ({"collection": "docs"}, 5, True)
    assert sent[0].headers["authorization"] == "Bearer key"


async def test_an_error_reply_is_the_gateways_own_message() -> None:
    with pytest.raises(CommandFailed, match=r"no model 'x' \(HTTP 404\)"):
        await parts(404, json.dumps({"error": {"message": "no model 'x'"}}).encode())


async def test_an_error_within_the_stream_fails() -> None:
    with pytest.raises(CommandFailed, match="worker died"):
        await parts(200, sse(delta("Hel"), {"error": {"message": "worker died"}}, done=False))


async def test_a_stream_that_just_ends_fails() -> None:
    with pytest.raises(CommandFailed, match="broke off"):
        await parts(200, sse(delta("Hel"), done=False))


@pytest.mark.parametrize("body", [b"data: {not json\n\n", b'data: {"choices": 3}\n\n'])
async def test_what_is_no_chunk_fails(body: bytes) -> None:
    with pytest.raises(CommandFailed, match="no chat chunk"):
        await parts(200, body)


async def test_no_gateway_is_one_line() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    async with ChatEndpoint("http://gateway", transport=httpx.MockTransport(refuse)) as endpoint:
        with pytest.raises(CommandFailed, match="no gateway answers at http://gateway"):
            [part async for part in endpoint.stream("m", [])]
