"""What a span says of a piece of work: never its text, unless that is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sage_telemetry import describe_answer, describe_work, semconv
from sage_telemetry.works import MAX_CONTENT_CHARS
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Embed,
    Generate,
    Rerank,
    Retrieve,
    RunPipeline,
    Sampling,
    TextPrompt,
    Work,
)

TEXT = "my grandmother's recipe"
CHAT = Generate(
    model="tiny",
    prompt=ChatPrompt(messages=[ChatMessage(role="user", content=TEXT)]),
    sampling=Sampling(max_tokens=7, temperature=0.5),
)
COMPLETION = Generate(model="tiny", prompt=TextPrompt(text=TEXT))
EMBED = Embed(model="mini", texts=[TEXT, "b"])
RETRIEVE = Retrieve(collection="docs", query=TEXT, vector=b"")
WORKS: list[Work] = [
    CHAT,
    COMPLETION,
    EMBED,
    RETRIEVE,
    Rerank(model="mini", query=TEXT, documents=[TEXT]),
    RunPipeline(pipeline="rag", messages=[ChatMessage(role="user", content=TEXT)]),
]


def test_works_are_described_in_the_words_of_the_conventions(configured: Any) -> None:
    configured()
    assert describe_work(CHAT) == {
        "gen_ai.provider.name": "sage",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
    }
    assert describe_work(COMPLETION)["gen_ai.operation.name"] == "text_completion"
    assert describe_work(EMBED)["gen_ai.operation.name"] == "embeddings"
    assert describe_work(EMBED)["sage.batch.items"] == 2
    assert describe_work(RETRIEVE)["gen_ai.data_source.id"] == "docs"
    assert describe_work(WORKS[-1])["gen_ai.workflow.name"] == "rag"


@pytest.mark.parametrize("work", WORKS, ids=lambda work: type(work).__name__)
def test_no_text_is_recorded_by_default(configured: Any, work: Work) -> None:
    configured()
    assert TEXT not in repr(describe_work(work))
    assert describe_answer(TEXT, "stop") == {}


def test_text_is_recorded_where_it_is_asked_for(configured: Any) -> None:
    configured(record_content=True)
    assert json.loads(str(describe_work(CHAT)[semconv.GEN_AI_INPUT_MESSAGES])) == [
        {"role": "user", "parts": [{"type": "text", "content": TEXT}]}
    ]
    assert TEXT in str(describe_work(COMPLETION)[semconv.GEN_AI_INPUT_MESSAGES])
    assert TEXT in str(describe_work(EMBED)[semconv.INPUT_TEXTS])
    assert describe_work(RETRIEVE)[semconv.GEN_AI_RETRIEVAL_QUERY_TEXT] == TEXT
    (message,) = json.loads(str(describe_answer(TEXT, "length")[semconv.GEN_AI_OUTPUT_MESSAGES]))
    assert message == {
        "role": "assistant",
        "parts": [{"type": "text", "content": TEXT}],
        "finish_reason": "length",
    }


def test_recorded_text_has_a_limit(configured: Any) -> None:
    configured(record_content=True)
    long = "x" * (3 * MAX_CONTENT_CHARS)
    turns = [ChatMessage(role="user", content=long)] * 3
    for attributes in (
        describe_work(Generate(model="tiny", prompt=ChatPrompt(messages=turns))),
        describe_work(Generate(model="tiny", prompt=TextPrompt(text=long))),
        describe_work(Embed(model="mini", texts=[long])),
        describe_work(Retrieve(collection="docs", query=long, vector=b"")),
        describe_answer(long, "stop"),
    ):
        assert all(len(str(value)) <= MAX_CONTENT_CHARS + 200 for value in attributes.values())


def test_nothing_is_recorded_once_telemetry_has_ended(configured: Any) -> None:
    telemetry = configured(record_content=True)
    telemetry.shutdown()
    assert TEXT not in repr(describe_work(CHAT))
