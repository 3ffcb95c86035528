"""The OpenAPI document says what the gateway does: every route, bodies that are taken, answers that are given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from gateway_driver import Gateway
from operation_driver import DONE, end, plan, plan_chat, plan_completion, texts
from sage_gateway.openapi import DOCUMENTED, openapi_document
from sage_gateway.operations import RerankOperation, ScoreOperation
from sage_wire.messages import Completed, Scores

DOCUMENT: dict[str, Any] = json.loads(openapi_document())
NOT_ROUTES = {"/v1/responses/compact", "/v1/responses/input_tokens"}
"""Names that answer 404 so that they are not taken for ids."""


def validator(reference: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": reference, "components": DOCUMENT["components"]})


def component(name: str) -> Draft202012Validator:
    return validator(f"#/components/schemas/{name}")


async def test_every_route_and_method_is_documented_and_no_other() -> None:
    routes = {
        (route.name, method.lower())
        for route in Gateway().routes
        for method in route.methods
        if route.name not in NOT_ROUTES
    }
    assert routes == {(route.path, route.method) for route in DOCUMENTED}


async def test_the_document_is_served_to_keys() -> None:
    reply = await Gateway().call("GET", "/openapi.json")
    assert reply.status == 200
    assert reply.json == DOCUMENT


def test_every_schema_is_one() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("ChatCompletion", lambda: end(plan_chat(n=2, logprobs=True), texts("a"), texts("b"))),
        ("ChatCompletion", lambda: end(plan_chat("thinker"), texts("<think>a</think>b"))),
        ("TextCompletion", lambda: end(plan_completion(logprobs=1), texts("a"))),
        (
            "Reranked",
            lambda: end(
                plan(RerankOperation("1", returns_documents=True), model="judge", query="q", documents=["a"]),
                [Scores(scores=[0.5]), Completed()],
            ),
        ),
        (
            "Scored",
            lambda: end(
                plan(ScoreOperation(), model="judge", text_1="q", text_2="a"), [Scores(scores=[0.5]), DONE]
            ),
        ),
    ],
)
def test_answers_are_what_the_document_says(name: str, body: Any) -> None:
    component(name).validate(body())


async def test_errors_are_what_the_document_says() -> None:
    reply = await Gateway().post("/v1/chat/completions", {"model": "tiny"})
    assert reply.status == 400
    component("Error").validate(reply.json)


@pytest.mark.parametrize(
    ("fields", "is_taken"),
    [
        ({"temperature": 1, "stop": ["a"], "logit_bias": {"5": 1.5}}, True),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
            True,
        ),
        ({"temperature": 3}, False),
        ({"stop": ""}, False),
        ({"logit_bias": {"x": 1}}, False),
        ({"tools": [{"type": "custom"}]}, False),
        ({"n": 17}, False),
        ({"messages": []}, False),
        ({"messages": [{"role": "robot", "content": "x"}]}, False),
    ],
)
def test_bodies_are_taken_as_the_document_says(fields: dict[str, Any], is_taken: bool) -> None:
    body = {"model": "caller", "messages": [{"role": "user", "content": "x"}]} | fields
    assert component("ChatBody").is_valid(body) == is_taken
    if is_taken:
        plan_chat(**body)
    else:
        with pytest.raises(Exception, match=r"expected|missing|too long|invalid"):
            plan_chat(**body)
