"""Scores of pairs and the tokenizer's routes, in vLLM's form."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from operation_driver import end, plan
from sage_core import BadRequest, Internal, LimitExceeded
from sage_gateway.operations import DetokenizeOperation, ScoreOperation, TokenizeOperation
from sage_wire import raw
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Completed,
    Detokenize,
    Detokenized,
    Embed,
    Output,
    Rerank,
    Scores,
    TextPrompt,
    Tokenize,
    Tokenized,
    Usage,
    Vectors,
)

SCORE, TOKENIZE, DETOKENIZE = ScoreOperation(), TokenizeOperation(), DetokenizeOperation()
DONE = Completed(usage=Usage(prompt_tokens=4))


def scored(body: dict[str, Any]) -> list[tuple[int, float]]:
    assert (body["object"], body["model"]) == ("list", "judge")
    assert all(item["object"] == "score" for item in body["data"])
    return [(item["index"], item["score"]) for item in body["data"]]


@pytest.mark.parametrize(
    ("one", "two"),
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
def test_one_text_is_scored_against_many(one: str, two: str) -> None:
    planned = plan(SCORE, model="judge", **{one: "q", two: ["a", "b"]})
    assert planned.works == [Rerank(model="judge", query="q", documents=["a", "b"])]
    body = end(planned, [Scores(scores=[0.1, 0.9]), DONE])
    assert scored(body) == [(0, 0.1), (1, 0.9)]
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_as_many_texts_are_scored_in_pairs_and_equal_ones_share_a_work() -> None:
    planned = plan(SCORE, model="judge", text_1=["q", "r", "q"], text_2=["a", "b", "c"])
    assert planned.works == [
        Rerank(model="judge", query="q", documents=["a", "c"]),
        Rerank(model="judge", query="r", documents=["b"]),
    ]
    body = end(planned, [Scores(scores=[0.1, 0.3]), DONE], [Scores(scores=[0.2]), DONE])
    assert scored(body) == [(0, 0.1), (1, 0.2), (2, 0.3)]
    assert body["usage"]["prompt_tokens"] == 8


def test_embedding_models_score_by_the_cosine() -> None:
    planned = plan(SCORE, model="mini", text_1="q", text_2=["q", "a"])
    assert planned.works == [Embed(model="mini", texts=["q", "a"])]
    data = struct.pack("<4f", 0.6, 0.8, 0.8, -0.6)
    body = end(planned, [Vectors(offset=0, dim=2, data=data), DONE])
    assert [item["score"] for item in body["data"]] == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("events", [[DONE], [Scores(scores=[0.5]), DONE]])
def test_scores_that_do_not_fit_are_an_error(events: list[Any]) -> None:
    planned = plan(SCORE, model="judge", text_1="q", text_2=["a", "b"])
    with pytest.raises(Internal):
        end(planned, events)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "text_1"),
        ({"text_1": "q"}, "text_2"),
        ({"text_2": "q"}, "text_1"),
        ({"queries": "q"}, "documents"),
        ({"documents": "q"}, "queries"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "text_2"),
        ({"text_1": [], "text_2": ["c"]}, "text_1"),
        ({"text_1": 5, "text_2": "c"}, "text_1"),
        ({"text_1": "a", "text_2": ["c"] * 2049}, "text_2"),
        ({"text_1": [str(index) for index in range(257)], "text_2": ["c"] * 257}, "text_1"),
        ({"text_1": "", "text_2": "c", "model": "mini"}, "text_1"),
        ({"text_1": "a", "text_2": "c", "model": "plain"}, "model"),
    ],
)
def test_a_wrong_score_request_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises((BadRequest, LimitExceeded)) as caught:
        plan(SCORE, **({"model": "judge"} | fields))
    assert caught.value.param == param


def test_a_prompt_is_tokenized_as_it_would_be_completed() -> None:
    planned = plan(TOKENIZE, model="plain", prompt="Hi", return_token_strs=True)
    assert planned.works == [Tokenize(model="plain", prompt=TextPrompt(text="Hi"), with_strings=True)]
    found = Output(value=raw(Tokenized(token_ids=[1, 2], strings=["H", "i"])))
    assert end(planned, [found, Completed()]) == {
        "count": 2,
        "max_model_len": 2048,
        "tokens": [1, 2],
        "token_strs": ["H", "i"],
    }


def test_messages_are_tokenized_with_their_template() -> None:
    planned = plan(
        TOKENIZE,
        messages=[{"role": "user", "content": "Hi"}],
        add_special_tokens=False,
        chat_template_kwargs={"a": 1},
    )
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content="Hi")], template_arguments='{"a": 1}')
    assert planned.works == [Tokenize(model="plain", prompt=prompt, adds_special_tokens=False)]
    body = end(planned, [Output(value=raw(Tokenized(token_ids=[3]))), Completed()])
    assert (body["tokens"], body["token_strs"]) == ([3], None)


def test_embedding_models_tokenize_too() -> None:
    assert plan(TOKENIZE, model="mini", prompt="x").served.task == "embed"


def test_token_ids_become_text() -> None:
    planned = plan(DETOKENIZE, model="plain", tokens=[1, 2])
    assert planned.works == [Detokenize(model="plain", token_ids=[1, 2])]
    assert end(planned, [Output(value=raw(Detokenized(text="Hi"))), Completed()]) == {"prompt": "Hi"}


def test_a_worker_that_returns_nothing_is_an_error() -> None:
    with pytest.raises(Internal):
        end(plan(DETOKENIZE, model="plain", tokens=[]), [Completed()])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"prompt": ["x"]}, "prompt"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False},
            "add_generation_prompt",
        ),
        ({"prompt": "x", "model": "judge"}, "model"),
        ({"prompt": "x", "chat_template": "x"}, "chat_template"),
    ],
)
def test_a_wrong_tokenize_request_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        plan(TOKENIZE, **fields)
    assert caught.value.param == param
