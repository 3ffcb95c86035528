"""Embeddings and reranking through the application."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse

from gateway_driver import Gateway
from sage_core import Unavailable
from sage_wire.messages import Completed, Embed, Event, Rerank, Scores, Tokens, Usage, Vectors

EMBEDDINGS = "/v1/embeddings"
ROWS = [[0.5, 0.25, -1.0, 0.1], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


def vectors(offset: int, rows: list[list[float]]) -> Vectors:
    flat = [value for row in rows for value in row]
    return Vectors(offset=offset, dim=4, data=struct.pack(f"<{len(flat)}f", *flat))


def as_float32(rows: list[list[float]]) -> list[list[float]]:
    return [list(struct.unpack("<4f", struct.pack("<4f", *row))) for row in rows]


DONE = Completed(usage=Usage(prompt_tokens=9))


@pytest.fixture
async def embedder() -> Gateway:
    gateway = Gateway()
    gateway.port.answer_with(vectors(0, ROWS[:2]), vectors(2, ROWS[2:]), DONE)
    return gateway


async def test_embeddings_are_floats_in_the_order_of_the_inputs(embedder: Gateway) -> None:
    reply = await embedder.post(EMBEDDINGS, {"model": "mini", "input": ["a", "b", "c"]})
    answer = CreateEmbeddingResponse.model_validate(reply.json, strict=True)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert [item.embedding for item in answer.data] == as_float32(ROWS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (9, 9)
    assert answer.model == "mini"
    assert embedder.port.streams[0].work == Embed(model="mini", texts=["a", "b", "c"])


async def test_base64_is_the_same_float32_bytes(embedder: Gateway) -> None:
    body = {"model": "mini", "input": ["a", "b", "c"], "encoding_format": "base64"}
    reply = await embedder.post(EMBEDDINGS, body)
    rows = [list(struct.unpack("<4f", base64.b64decode(item["embedding"]))) for item in reply.json["data"]]
    assert rows == as_float32(ROWS)


@pytest.mark.parametrize(("given", "token_ids"), [([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])])
async def test_token_ids_are_embedded_as_they_are(given: Any, token_ids: list[list[int]]) -> None:
    gateway = Gateway()
    gateway.port.answer_with(vectors(0, ROWS[: len(token_ids)]), DONE)
    reply = await gateway.post(EMBEDDINGS, {"model": "mini", "input": given})
    assert len(reply.json["data"]) == len(token_ids)
    assert gateway.port.streams[0].work == Embed(model="mini", token_ids=token_ids)


async def test_batches_may_arrive_in_any_order() -> None:
    gateway = Gateway()
    gateway.port.answer_with(vectors(2, ROWS[2:]), vectors(0, ROWS[:2]), DONE)
    reply = await gateway.post(EMBEDDINGS, {"model": "mini", "input": ["a", "b", "c"]})
    assert [item["embedding"] for item in reply.json["data"]] == as_float32(ROWS)


async def test_one_text_and_dimensions_are_passed_on() -> None:
    gateway = Gateway()
    gateway.port.answer_with(vectors(0, ROWS[:1]), DONE)
    reply = await gateway.post(EMBEDDINGS, {"model": "auto", "input": "a", "dimensions": 2, "user": "u"})
    assert reply.status == 200
    assert gateway.port.streams[0].work == Embed(model="mini", texts=["a"], dimensions=2)


@pytest.mark.parametrize(
    "events",
    [
        (vectors(0, ROWS[:1]), DONE),
        (vectors(0, ROWS), vectors(3, ROWS), DONE),
        (vectors(1, ROWS[:2]), vectors(0, ROWS[:1]), vectors(0, ROWS[:1]), DONE),
        (Vectors(offset=0, dim=4, data=b"123"), DONE),
        (Vectors(offset=0, dim=0, data=b""), DONE),
        (Tokens(text="x"), DONE),
        (DONE,),
    ],
)
async def test_vectors_that_do_not_fit_are_an_error_never_a_wrong_answer(events: tuple[Event, ...]) -> None:
    gateway = Gateway()
    gateway.port.answer_with(*events)
    reply = await gateway.post(EMBEDDINGS, {"model": "mini", "input": ["a", "b"]})
    assert reply.status == 500
    assert reply.error["code"] == "internal_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [[1, 2], "a"]}, "input"),
        ({"input": [[1, 2], []]}, "input[1]"),
        ({"input": [-1]}, "input[0]"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"input": 5}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 5}, "dimensions"),
        ({"model": "tiny"}, "model"),
    ],
)
async def test_a_wrong_embedding_request_is_400_with_its_param(fields: dict[str, Any], param: str) -> None:
    gateway = Gateway()
    reply = await gateway.post(EMBEDDINGS, {"model": "mini", "input": "a"} | fields)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert gateway.port.streams == []


RERANK = {"model": "mini", "query": "q", "documents": ["a", "b", {"text": "c"}]}


@pytest.fixture
async def reranker() -> Gateway:
    gateway = Gateway()
    gateway.port.answer_with(Scores(scores=[0.1, 0.9, 0.5]), DONE)
    return gateway


async def test_rerank_is_best_first_with_documents(reranker: Gateway) -> None:
    reply = await reranker.post("/v1/rerank", RERANK)
    assert reply.json["results"] == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}},
        {"index": 0, "relevance_score": 0.1, "document": {"text": "a"}},
    ]
    assert reply.json["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert reranker.port.streams[0].work == Rerank(model="mini", query="q", documents=["a", "b", "c"])


async def test_rerank_v2_returns_indexes_alone_and_top_n_cuts(reranker: Gateway) -> None:
    reply = await reranker.post("/v2/rerank", RERANK | {"top_n": 2})
    assert reply.json["results"] == [
        {"index": 1, "relevance_score": 0.9},
        {"index": 2, "relevance_score": 0.5},
    ]
    assert reply.json["meta"] == {"api_version": {"version": "2"}}


async def test_return_documents_is_followed_and_top_n_may_be_large(reranker: Gateway) -> None:
    without = await reranker.post("/v1/rerank", RERANK | {"return_documents": False, "top_n": 99})
    assert [set(result) for result in without.json["results"]] == [{"index", "relevance_score"}] * 3
    having = await reranker.post("/v2/rerank", RERANK | {"return_documents": True})
    assert all("document" in result for result in having.json["results"])


async def test_equal_scores_keep_the_order_of_the_request() -> None:
    gateway = Gateway()
    gateway.port.answer_with(Scores(scores=[0.5, 0.5, 0.5]), DONE)
    reply = await gateway.post("/v1/rerank", RERANK)
    assert [result["index"] for result in reply.json["results"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": [5]}, "documents[0]"),
        ({"documents": [{"title": "x"}]}, "documents[0].text"),
        ({"query": ""}, "query"),
        ({"query": ["q"]}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"model": "tiny"}, "model"),
    ],
)
async def test_a_wrong_rerank_request_is_400_with_its_param(fields: dict[str, Any], param: str) -> None:
    gateway = Gateway()
    reply = await gateway.post("/v1/rerank", RERANK | fields)
    assert reply.status == 400
    assert reply.error["param"] == param


@pytest.mark.parametrize("events", [(Scores(scores=[0.5]), DONE), (DONE,)])
async def test_scores_that_do_not_fit_are_an_error(events: tuple[Event, ...]) -> None:
    gateway = Gateway()
    gateway.port.answer_with(*events)
    assert (await gateway.post("/v1/rerank", RERANK)).status == 500


async def test_a_pool_that_cannot_serve_is_503() -> None:
    gateway = Gateway()
    gateway.port.fail_with(Unavailable("no instance"))
    assert (await gateway.post("/v1/rerank", RERANK)).status == 503
