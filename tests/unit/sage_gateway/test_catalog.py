"""Models as they come and go, the routes that show them, and readiness."""

from __future__ import annotations

import pytest
from openai.types import Model

from gateway_driver import HELLO, MODELS, Gateway, chat
from sage_core import BadRequest, NotFound, Unavailable
from sage_gateway import Catalog
from sage_wire.messages import ServedModel

CHAT = ("generate", "pipeline")
BIG = ServedModel(name="big", task="generate")
TINY = ServedModel(name="tiny", task="generate")


def catalog_of(*models: ServedModel) -> Catalog:
    catalog = Catalog(60.0)
    catalog.update("w1", "llm-worker", models, 0.0)
    return catalog


def test_auto_is_the_first_announced_and_stays_it() -> None:
    catalog = catalog_of(TINY)
    catalog.update("w2", "llm-worker", [BIG], 1.0)
    catalog.update("w1", "llm-worker", [TINY], 2.0)
    assert catalog.resolve("auto", CHAT, 2.0) is TINY


def test_auto_prefers_a_model_that_has_workers() -> None:
    catalog = catalog_of(TINY)
    catalog.update("w2", "llm-worker", [BIG], 1.0)
    catalog.remove("w1", 2.0)
    assert catalog.resolve("auto", CHAT, 2.0) is BIG
    catalog.remove("w2", 3.0)
    assert catalog.resolve("auto", CHAT, 3.0) is TINY


def test_auto_without_a_model_of_the_task_is_not_found() -> None:
    with pytest.raises(NotFound):
        catalog_of(MODELS[1]).resolve("auto", CHAT, 0.0)


def test_a_model_whose_worker_restarts_is_never_unknown_meanwhile() -> None:
    catalog = catalog_of(TINY)
    catalog.remove("w1", 10.0)
    assert catalog.resolve("tiny", CHAT, 69.9) is TINY
    catalog.update("w1", "llm-worker", [TINY], 69.9)
    assert catalog.resolve("tiny", CHAT, 1000.0) is TINY


def test_a_model_that_stays_away_is_forgotten() -> None:
    catalog = catalog_of(TINY)
    catalog.update("w2", "llm-worker", [BIG], 1.0)
    catalog.remove("w1", 10.0)
    with pytest.raises(NotFound, match="big"):
        catalog.resolve("tiny", CHAT, 70.0)


def test_a_model_lives_while_any_worker_serves_it() -> None:
    catalog = catalog_of(TINY)
    catalog.update("w2", "llm-worker", [TINY], 1.0)
    catalog.remove("w1", 2.0)
    assert catalog.resolve("tiny", CHAT, 1000.0) is TINY


def test_a_worker_that_no_longer_announces_a_model_leaves_it() -> None:
    catalog = catalog_of(TINY, BIG)
    catalog.update("w1", "llm-worker", [BIG], 10.0)
    assert [model.name for model in catalog.models(70.0)] == ["big"]


def test_before_any_worker_the_answer_is_later_not_never() -> None:
    with pytest.raises(Unavailable):
        Catalog(60.0).resolve("tiny", CHAT, 0.0)


def test_a_name_with_several_tasks_is_found_by_the_task_that_is_asked() -> None:
    catalog = catalog_of(*MODELS)
    assert catalog.resolve("mini", ("embed",), 0.0).task == "embed"
    assert catalog.resolve("mini", ("rerank",), 0.0).task == "rerank"
    with pytest.raises(BadRequest, match="embed and rerank"):
        catalog.resolve("mini", CHAT, 0.0)


def test_an_endless_name_is_cut_in_the_message() -> None:
    with pytest.raises(NotFound) as caught:
        catalog_of(TINY).resolve("x" * 5000, CHAT, 0.0)
    assert len(caught.value.message) < 300


async def test_the_model_list_has_one_entry_per_name_and_no_operators(gateway: Gateway) -> None:
    reply = await gateway.call("GET", "/v1/models")
    assert reply.json["object"] == "list"
    models = [Model.model_validate(entry, strict=True) for entry in reply.json["data"]]
    assert [model.id for model in models] == ["tiny", "mini", "pipeline/rag-docs"]
    assert reply.json["data"][1]["tasks"] == ["embed", "rerank"]
    assert reply.json["data"][0]["max_model_len"] == 2048


async def test_one_model_by_name_also_with_slashes_and_by_alias(gateway: Gateway) -> None:
    for path, name in (("mini", "mini"), ("pipeline/rag-docs", "pipeline/rag-docs"), ("auto", "tiny")):
        reply = await gateway.call("GET", f"/v1/models/{path}")
        assert Model.model_validate(reply.json, strict=True).id == name
    missing = await gateway.call("GET", "/v1/models/none")
    assert missing.status == 404
    assert missing.error["code"] == "model_not_found"


async def test_no_models_yet_is_503_with_retry_after() -> None:
    gateway = Gateway(models=())
    reply = await gateway.post("/v1/chat/completions", chat())
    assert reply.status == 503
    assert "retry-after" in reply.headers
    assert (await gateway.call("GET", "/v1/models")).json["data"] == []


async def test_ready_means_a_scheduler_and_a_generating_worker() -> None:
    gateway = Gateway(models=())
    gateway.port.answer_with(*HELLO)

    async def ready() -> tuple[int, list[str]]:
        reply = await gateway.call("GET", "/readyz")
        return reply.status, reply.json["reasons"]

    status, reasons = await ready()
    assert status == 503
    assert len(reasons) == 2
    gateway.catalog.update("s1", "scheduler", [], 0.0)
    gateway.catalog.update("e1", "embedding-worker", [MODELS[1]], 0.0)
    assert (await ready())[0] == 503
    gateway.catalog.update("w1", "llm-worker", [TINY], 0.0)
    assert await ready() == (200, [])
    gateway.in_flight.is_draining = True
    assert (await ready())[0] == 503
    gateway.in_flight.is_draining = False
    gateway.catalog.remove("s1", 0.0)
    assert (await ready())[0] == 503
    assert (await gateway.call("GET", "/healthz")).status == 200
