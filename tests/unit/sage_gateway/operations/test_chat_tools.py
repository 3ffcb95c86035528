"""Tools of chat: what reaches the prompt and the grammar, and how calls are answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from operation_driver import asked, chat_answer, chat_chunks, chunks, end, generate, plan_chat, texts
from sage_core import BadRequest, LimitExceeded
from sage_gateway.operations import ChatOperation
from sage_wire.messages import ChatPrompt, Completed, JsonSchema, ToolDefinition

PARAMETERS = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'


def tool(name: str, parameters: str | None = PARAMETERS) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "description": f"Does {name}."}
    if parameters is not None:
        function["parameters"] = json.loads(parameters)
    return {"type": "function", "function": function}


TOOLS = [tool("weather"), tool("clock", None)]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
GUIDED = '[{"name": "weather", "parameters": {"city": "Bern"}}]'
NAMED = {"type": "function", "function": {"name": "weather"}}


def prompt_tools(planned: Any) -> list[ToolDefinition]:
    prompt = generate(planned).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.tools


def schema(planned: Any) -> Any:
    structure = generate(planned).structure
    assert isinstance(structure, JsonSchema)
    return json.loads(structure.schema)


def test_tools_reach_the_prompt_as_the_text_they_were() -> None:
    body = b"""{"model":"caller","messages":[{"role":"user","content":"x"}],
        "tools":[{"type":"function","function":{"name":"f","parameters":{ "type" : "object" }}}]}"""
    planned = ChatOperation().plan(body, asked())
    assert prompt_tools(planned) == [ToolDefinition(name="f", parameters='{ "type" : "object" }')]
    assert generate(planned).structure is None


def test_calls_of_the_models_own_are_answered_with_tool_calls() -> None:
    answer = chat_answer(plan_chat("caller", tools=TOOLS), texts(CALL[:20], CALL[20:], OTHER))
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    made = [call.function for call in choice.message.tool_calls if call.type == "function"]
    assert [(call.name, call.arguments) for call in made] == [
        ("weather", '{"city": "Bern"}'),
        ("clock", "{}"),
    ]
    ids = {call.id for call in choice.message.tool_calls}
    assert len(ids) == 2


def test_text_before_a_call_stays_content() -> None:
    answer = chat_answer(plan_chat("caller", tools=TOOLS), texts("Let me see.\n", CALL))
    assert answer.choices[0].message.content == "Let me see."
    assert answer.choices[0].finish_reason == "tool_calls"


def test_an_answer_without_calls_is_an_answer() -> None:
    answer = chat_answer(plan_chat("caller", tools=TOOLS), texts("It is ", "sunny."))
    assert answer.choices[0].message.content == "It is sunny."
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


def test_a_call_cut_short_says_length() -> None:
    events = texts(CALL[:60], done=Completed(finish_reason="length"))
    answer = chat_answer(plan_chat("caller", tools=TOOLS), events)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.tool_calls is not None


def test_calls_stream_with_their_name_first_and_their_arguments_after() -> None:
    answers = chat_chunks(plan_chat("caller", tools=TOOLS, stream=True), texts(*CALL, *OTHER))
    deltas = [chunk.choices[0].delta for chunk in answers]
    assert deltas[0].role == "assistant"
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    starts = [call for call in calls if call.id is not None]
    assert [
        (call.index, call.function.name, call.function.arguments) for call in starts if call.function
    ] == [
        (0, "weather", ""),
        (1, "clock", ""),
    ]
    arguments = {0: "", 1: ""}
    for call in calls:
        assert call.function is not None
        arguments[call.index] += call.function.arguments or ""
    assert arguments == {0: '{"city": "Bern"}', 1: "{}"}
    assert [chunk.choices[0].finish_reason for chunk in answers if chunk.choices[0].finish_reason] == [
        "tool_calls"
    ]
    assert "".join(delta.content or "" for delta in deltas) == ""


def test_one_call_is_kept_where_parallel_calls_are_off() -> None:
    answer = chat_answer(plan_chat("caller", tools=TOOLS, parallel_tool_calls=False), texts(CALL, OTHER))
    assert len(answer.choices[0].message.tool_calls or ()) == 1


def test_none_keeps_tools_out_of_the_prompt_and_calls_in_the_text() -> None:
    planned = plan_chat("caller", tools=TOOLS, tool_choice="none")
    assert prompt_tools(planned) == []
    assert chat_answer(planned, texts(CALL)).choices[0].message.content == CALL


def test_required_is_enforced_by_a_grammar_of_all_calls() -> None:
    planned = plan_chat("caller", tools=TOOLS, tool_choice="required")
    enforced = schema(planned)
    assert (enforced["type"], enforced["minItems"]) == ("array", 1)
    weather, clock = enforced["items"]["anyOf"]
    assert weather["properties"]["name"]["enum"] == ["weather"]
    assert weather["properties"]["parameters"] == json.loads(PARAMETERS)
    assert clock["properties"]["parameters"] == {"type": "object", "properties": {}}
    assert len(prompt_tools(planned)) == 2
    choice = chat_answer(planned, texts(GUIDED)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [call.type for call in choice.message.tool_calls or ()] == ["function"]


def test_required_without_parallel_calls_allows_one_item() -> None:
    planned = plan_chat("caller", tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert schema(planned)["maxItems"] == 1


def test_a_named_function_gets_the_whole_text_as_arguments_and_stops() -> None:
    planned = plan_chat("caller", tools=TOOLS, tool_choice=NAMED)
    assert schema(planned) == json.loads(PARAMETERS)
    assert [tool.name for tool in prompt_tools(planned)] == ["weather"]
    choice = chat_answer(planned, texts('{"city":', '"Bern"}')).choices[0]
    assert choice.finish_reason == "stop"
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Bern"}')


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_the_only_ones_that_the_model_knows(mode: str) -> None:
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [{"type": "function", "function": {"name": "clock"}}]},
    }
    planned = plan_chat("caller", tools=TOOLS, tool_choice=choice)
    assert [tool.name for tool in prompt_tools(planned)] == ["clock"]
    assert (generate(planned).structure is None) == (mode == "auto")


FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(PARAMETERS)}}


def test_tools_and_a_response_format_leave_the_model_the_choice_of_both() -> None:
    planned = plan_chat("caller", tools=TOOLS, response_format=FORMAT)
    calls, answer = schema(planned)["anyOf"]
    assert calls["type"] == "array"
    assert answer == json.loads(PARAMETERS)
    assert chat_answer(planned, texts(GUIDED)).choices[0].finish_reason == "tool_calls"
    planned = plan_chat("caller", tools=TOOLS, response_format=FORMAT)
    choice = chat_answer(planned, texts('{"city":"Bern"}')).choices[0]
    assert (choice.message.content, choice.finish_reason) == ('{"city":"Bern"}', "stop")


def test_references_of_a_schema_lead_to_its_own_place() -> None:
    properties = {"p": {"$ref": "#/$defs/P"}, "me": {"$ref": "#"}}
    parameters = {"type": "object", "properties": properties, "$defs": {"P": {"type": "string"}}}
    planned = plan_chat("caller", tools=[tool("f", json.dumps(parameters))], tool_choice="required")
    moved = schema(planned)["items"]["anyOf"][0]["properties"]["parameters"]
    place = "#/items/anyOf/0/properties/parameters"
    assert moved["properties"] == {"p": {"$ref": f"{place}/$defs/P"}, "me": {"$ref": place}}


FUNCTIONS = [TOOLS[0]["function"]]


def test_deprecated_functions_are_answered_in_their_own_form() -> None:
    planned = plan_chat("caller", functions=FUNCTIONS)
    choice = chat_answer(planned, texts(CALL, CALL)).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.arguments == '{"city": "Bern"}'
    assert choice.message.tool_calls is None
    named = plan_chat("caller", functions=FUNCTIONS, function_call={"name": "weather"})
    assert chat_answer(named, texts("{}")).choices[0].finish_reason == "stop"
    streamed = chat_chunks(plan_chat("caller", functions=FUNCTIONS, stream=True), texts(*CALL, *CALL))
    calls = [chunk.choices[0].delta.function_call for chunk in streamed]
    made = [call for call in calls if call is not None]
    assert made[0].name == "weather"
    assert "".join(call.arguments or "" for call in made) == '{"city": "Bern"}'
    assert streamed[-1].choices[0].finish_reason == "function_call"


def test_reasoning_comes_apart_and_is_counted() -> None:
    planned = plan_chat("thinker", tools=TOOLS)
    body = end(planned, texts("<think>\n", "Which ", "one?", "\n</think>\n\n", CALL))
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "Which one?"
    assert message["content"] is None
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    streamed = chunks(plan_chat("thinker", stream=True), texts("<think>a", "b</think>", "c"))
    deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "ab"
    assert "".join(delta.get("content", "") for delta in deltas) == "c"


def test_reasoning_may_be_left_out_of_the_answer() -> None:
    events = texts("<think>a</think>b")
    body = end(plan_chat("thinker", include_reasoning=False), events)
    assert "reasoning" not in json.dumps(body["choices"])
    assert body["choices"][0]["message"]["content"] == "b"
    assert "reasoning" not in json.dumps([c["choices"] for c in chunks(
        plan_chat("thinker", include_reasoning=False, stream=True), events
    )])  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("no spaces")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools"),
        ({"tools": [tool("f", "[]")]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", '{"type":"text"}')]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", '"x"')]}, "tools[0].function.parameters"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "functions": FUNCTIONS}, "functions"),
        ({"function_call": {"name": "weather"}}, "function_call"),
        ({"tools": TOOLS, "model": "plain"}, "tools"),
        ({"tools": TOOLS, "model": "pipeline/rag-docs"}, "tools"),
        ({"tools": TOOLS, "guided_regex": "a+"}, "structured_outputs"),
    ],
)
def test_wrong_tools_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        plan_chat(**({"model": "caller"} | fields))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool(f"f{index}") for index in range(129)]}, "tools"),
        (
            {"tools": [tool(f"f{index}", json.dumps({"title": "x" * 60_000})) for index in range(9)]},
            "tools",
        ),
        ({"tools": [tool("f", json.dumps({"description": "x" * 65_536}))]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", '{"not":' * 70 + "{}" + "}" * 70)]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", json.dumps({"enum": list(range(1001))}))]}, "tools[0].function.parameters"),
        (
            {"tools": [tool("f", json.dumps({"properties": {str(index): {} for index in range(5001)}}))]},
            "tools[0].function.parameters",
        ),
    ],
)
def test_too_many_or_too_large_tools_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        plan_chat("caller", **fields)
    assert caught.value.param == param
