"""Whatever the body is: an answer, a JSON error body where it is wrong, and never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_driver import HELLO, FakeStream, Gateway, Reply
from sage_wire.messages import Completed, Embed, Rerank, Scores, Vectors

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v2/rerank")

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, float("nan"), float("inf"), -0.0, 1.5])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["tiny", "mini", "auto", "user", "assistant", "text", "base64", "\ud800", "\udfff", "\0"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "role", "content", "name", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | values, "content": values},
        optional={"name": values, "tool_calls": values, "audio": values},
    ),
    max_size=3,
)
FIELDS = (
    "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "n",
    "presence_penalty", "frequency_penalty", "service_tier", "logprobs", "top_logprobs", "response_format",
    "logit_bias", "tools", "tool_choice", "functions", "function_call", "modalities", "audio", "store", "echo",
    "suffix", "best_of", "encoding_format", "dimensions", "top_n", "return_documents", "unknown", "user",
)  # fmt: skip
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(["tiny", "mini", "pipeline/rag-docs", "auto", "none"]) | values},
    optional={
        "messages": messages | values,
        "prompt": values,
        "input": values,
        "query": values,
        "documents": values,
        **dict.fromkeys(FIELDS, values),
    },
)


def answer(stream: FakeStream) -> None:
    match stream.work:
        case Embed(texts=texts):
            stream.push(Vectors(offset=0, dim=1, data=b"\0\0\x80\x3f" * len(texts)), Completed())
        case Rerank(documents=documents):
            stream.push(Scores(scores=[0.0] * len(documents)), Completed())
        case _:
            stream.push(*HELLO)


def send(path: str, body: bytes, headers: dict[str, str] | None = None) -> Reply:
    async def run() -> Reply:
        gateway = Gateway()
        gateway.port.answer = answer
        return await gateway.post(path, body, headers=headers)

    return asyncio.run(run())


def check(reply: Reply) -> None:
    assert reply.status < 500
    if reply.status == 200:
        if reply.headers["content-type"].startswith("text/event-stream"):
            assert reply.events[-1] == "[DONE]"
        else:
            assert reply.json
    else:
        error = reply.error
        assert error["message"]
        assert error["type"] in ("invalid_request_error", "rate_limit_error", "permission_error")


@settings(max_examples=60, deadline=None, database=None)
@given(path=st.sampled_from(PATHS), body=bodies)
def test_any_json_is_answered_or_refused(path: str, body: dict[str, Any]) -> None:
    check(send(path, json.dumps(body).encode()))


@settings(max_examples=30, deadline=None, database=None)
@given(
    path=st.sampled_from(PATHS),
    body=st.binary(max_size=64) | st.text(max_size=64).map(lambda t: t.encode("utf-8", "replace")),
)
def test_any_bytes_are_refused(path: str, body: bytes) -> None:
    reply = send(path, body)
    check(reply)
    assert reply.status == 400


@settings(max_examples=30, deadline=None, database=None)
@given(
    name=st.sampled_from(
        [
            "x-client-request-id",
            "x-sage-budget-ms",
            "x-slo-class",
            "x-slo-ttft-ms",
            "traceparent",
            "host",
        ]
    ),
    value=st.text(st.characters(max_codepoint=255), max_size=40),
)
def test_any_header_is_accepted_or_refused(name: str, value: str) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]}).encode()
    check(send("/v1/chat/completions", body, {name: value}))
