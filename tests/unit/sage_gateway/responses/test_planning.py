"""Whatever a body says, it is planned or refused with the field that is wrong; never more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response
from pydantic import TypeAdapter

from sage_core import BadRequest, LimitExceeded, NotFound, SageError
from sage_gateway import Catalog
from sage_gateway.operation import Asked
from sage_gateway.responses.bodies import CREATE_DECODER
from sage_gateway.responses.conversation import Reference, input_items
from sage_gateway.responses.items import ItemIds
from sage_gateway.responses.planning import PlannedResponse, in_our_words, plan_response
from sage_wire.messages import Completed, Generate, ServedModel, Tokens

RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
CATALOG = Catalog(60.0)
CATALOG.update(
    "w",
    "llm-worker",
    [
        ServedModel(
            name="tiny", task="generate", tool_format="hermes", reasoning_format="think", takes_images=True
        )
    ],
    0.0,
)


def planned(fields: dict[str, Any]) -> PlannedResponse:
    body = CREATE_DECODER.decode(json.dumps({"model": "tiny", "input": "Hi"} | fields).encode()).body
    items = [
        item for item in input_items(body.input, ItemIds("resp_a", "i")) if not isinstance(item, Reference)
    ]
    asked = Asked("resp-a", 1, 0.0, CATALOG)
    return plan_response(body, items, asked, response_id="resp_a", is_stored=True, unix_time=lambda: 2)


TEXT = st.text(max_size=4)
WORDS = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "function",
        "allowed_tools",
        "input_text",
    ]
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image", "reasoning_text"])},
        optional={"text": TEXT, "refusal": TEXT, "image_url": st.just("data:image/png;base64,iVBORw0KGgo=")},
    ),
    max_size=3,
)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": WORDS,
        "role": ROLES,
        "content": st.one_of(TEXT, PARTS, st.none()),
        "call_id": st.sampled_from(["c1", "c2"]),
        "name": TEXT,
        "arguments": TEXT,
        "output": st.one_of(TEXT, PARTS),
        "summary": PARTS,
        "id": TEXT,
    },
)
TOOL = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "web_search"])},
    optional={
        "name": st.sampled_from(["f", "g", "", "a b"]),
        "parameters": st.just({"type": "object"}),
        "strict": st.booleans(),
    },
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "input": st.one_of(TEXT, st.none(), st.lists(ITEM, max_size=5)),
        "tools": st.lists(TOOL, max_size=3),
        "tool_choice": st.one_of(
            st.sampled_from(["none", "auto", "required", "all"]),
            st.fixed_dictionaries(
                {"type": WORDS},
                optional={
                    "name": st.sampled_from(["f", "x"]),
                    "tools": st.lists(TOOL, max_size=2),
                    "mode": WORDS,
                },
            ),
        ),
        "text": st.fixed_dictionaries(
            {},
            optional={
                "format": st.fixed_dictionaries(
                    {"type": st.sampled_from(["text", "json_object", "json_schema"])},
                    optional={"name": TEXT, "schema": st.sampled_from([{}, {"type": "array"}, [], None])},
                )
            },
        ),
        "reasoning": st.fixed_dictionaries(
            {}, optional={"effort": st.just("low"), "summary": st.just("auto")}
        ),
        "top_p": st.floats(0, 1),
        "include": st.just(["message.output_text.logprobs"]),
        "instructions": TEXT,
        "parallel_tool_calls": st.booleans(),
        "stream": st.booleans(),
        "parameters": st.just({"a": "b"}),
        "metadata": st.dictionaries(TEXT, TEXT, max_size=2),
    },
)


@settings(max_examples=100, deadline=None)
@given(FIELDS)
def test_a_body_is_planned_or_refused_by_name(fields: dict[str, Any]) -> None:
    error: SageError | None = None
    try:
        plan = planned(fields)
    except (BadRequest, LimitExceeded, NotFound) as refused:
        error = refused
    if error is not None:
        assert in_our_words(error).param
        return
    (work,) = plan.planned.works
    assert isinstance(work, Generate)
    said = plan.answer.add(0, [Tokens(text="a"), Completed()])
    if plan.answer.is_streamed:
        assert said
    else:
        RESPONSE.validate_json(plan.answer.end(), strict=True)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("response_format", "text.format"),
        ("messages", "input"),
        ("max_tokens", "max_output_tokens"),
        ("tools", "tools"),
        (None, None),
    ],
)
def test_an_error_names_the_field_as_this_api_does(theirs: str | None, ours: str | None) -> None:
    error: SageError = BadRequest("no", param=theirs)
    assert in_our_words(error).param == ours


def test_effort_reaches_the_template_and_is_echoed() -> None:
    plan = planned({"reasoning": {"effort": "low"}})
    (work,) = plan.planned.works
    assert json.loads(work.prompt.template_arguments) == {"reasoning_effort": "low"}  # type: ignore[union-attr]
    assert plan.answer.stopped("cancelled").reasoning.effort == "low"
