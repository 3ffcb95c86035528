"""The routes of the Responses API, over HTTP without a network: what is asked of the model, answered and stored."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import TypeAdapter

from gateway_driver import HELLO, FakeStream, Gateway, Reply, write_keys
from sage_bus import MemoryBroker
from sage_core import ContextLengthExceeded, WorkerLost
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Completed,
    Event,
    Generate,
    JsonSchema,
    RunPipeline,
    ServedModel,
    Tokens,
    ToolCall,
    Usage,
)

PATH = "/v1/responses"
MODELS = (
    ServedModel(
        name="tiny", task="generate", tool_format="hermes", reasoning_format="think", takes_images=True
    ),
    ServedModel(name="plain", task="generate"),
    ServedModel(name="pipeline/rag-docs", task="pipeline"),
)
PNG = "data:image/png;base64,iVBORw0KGgo="
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL: tuple[Event, ...] = (
    Tokens(text='<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'),
    Completed(usage=Usage(prompt_tokens=7, completion_tokens=9)),
)

RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEMS: TypeAdapter[Any] = TypeAdapter(ResponseItemList)


@pytest.fixture
def gateway() -> Gateway:
    made = Gateway(MODELS)
    made.port.answer_with(*HELLO)
    return made


def asked(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "input": "Hi"} | fields


async def created(gateway: Gateway, **fields: Any) -> Any:
    reply = await gateway.post(PATH, asked(**fields))
    assert reply.status == 200, reply.body
    RESPONSE.validate_python(reply.json, strict=True)
    return reply.json


def events_of(reply: Reply) -> list[dict[str, Any]]:
    blocks = [block for block in reply.body.decode().split("\n\n") if block.startswith("event: ")]
    events = [json.loads(block.partition("\ndata: ")[2]) for block in blocks]
    for event in events:
        EVENT.validate_python(event, strict=True)
    return events


def work_of(gateway: Gateway) -> Generate:
    work = gateway.port.streams[-1].work
    assert isinstance(work, Generate)
    return work


def messages_of(gateway: Gateway) -> list[ChatMessage]:
    prompt = work_of(gateway).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


async def refused(gateway: Gateway, param: str | None, status: int = 400, **fields: Any) -> dict[str, Any]:
    reply = await gateway.post(PATH, asked(**fields))
    assert reply.status == status, reply.body
    error = dict(reply.error)
    assert error["param"] == param, error
    return error


async def test_text_in_text_out(gateway: Gateway) -> None:
    response = await created(gateway, instructions="Be kind", max_output_tokens=9, metadata={"a": "b"})
    assert response["id"].startswith("resp_")
    assert response["output"][0]["content"][0]["text"] == "Hello world"
    assert (response["status"], response["store"], response["metadata"]) == ("completed", True, {"a": "b"})
    assert messages_of(gateway) == [
        ChatMessage(role="system", content="Be kind"),
        ChatMessage(role="user", content="Hi"),
    ]
    assert work_of(gateway).sampling.max_tokens == 9


async def test_a_stream_is_the_same_answer_in_typed_events(gateway: Gateway) -> None:
    reply = await gateway.post(PATH, asked(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.body.endswith(b"data: [DONE]\n\n")
    events = events_of(reply)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1]
    assert last["type"] == "response.completed"
    found = await gateway.call("GET", f"{PATH}/{last['response']['id']}")
    assert found.json == last["response"]


async def test_what_is_stored_is_found_until_it_is_deleted(gateway: Gateway) -> None:
    response = await created(gateway)
    path = f"{PATH}/{response['id']}"
    assert (await gateway.call("GET", path)).json == response
    deleted = await gateway.call("DELETE", path)
    assert deleted.json == {"id": response["id"], "object": "response", "deleted": True}
    for method, target in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        gone = await gateway.call(method, target)
        assert (gone.status, gone.error["code"]) == (404, "not_found")


async def test_another_gateway_finds_it_and_another_tenant_does_not(tmp_path: Path) -> None:
    broker = MemoryBroker()
    one, two = (Gateway(MODELS, bus=broker.connect(name)) for name in ("one", "two"))
    one.port.answer_with(*HELLO)
    response = await created(one)
    assert (await two.call("GET", f"{PATH}/{response['id']}")).json == response
    other = Gateway(
        MODELS,
        bus=broker.connect("other"),
        headers={"authorization": "Bearer sk-other"},
        keys_file=write_keys(tmp_path, other="sk-other"),
    )
    for method in ("GET", "DELETE"):
        assert (await other.call(method, f"{PATH}/{response['id']}")).status == 404
    error = await refused(other, "previous_response_id", previous_response_id=response["id"])
    assert error["code"] == "previous_response_not_found"
    item = response["output"][0]["id"]
    await refused(other, "input[0].id", input=[{"type": "item_reference", "id": item}])


async def test_what_is_not_to_be_stored_is_not(gateway: Gateway) -> None:
    response = await created(gateway, store=False)
    assert response["store"] is False
    assert (await gateway.call("GET", f"{PATH}/{response['id']}")).status == 404


@pytest.mark.parametrize("settings", [{"responses_ttl": 0}, {"max_stored_response": 1024}])
async def test_what_cannot_be_stored_is_answered_and_says_so(settings: dict[str, Any]) -> None:
    gateway = Gateway(MODELS, **settings)
    gateway.port.answer_with(Tokens(text="x" * 2000), HELLO[-1])
    response = await created(gateway)
    assert (response["status"], response["store"]) == ("completed", False)
    assert (await gateway.call("GET", f"{PATH}/{response['id']}")).status == 404


async def test_a_store_that_is_away_costs_the_record_alone() -> None:
    bus = MemoryBroker().connect("data")
    gateway = Gateway(MODELS, bus=bus)
    gateway.port.answer_with(*HELLO)
    await bus.close()
    response = await created(gateway)
    assert (response["status"], response["store"]) == ("completed", False)
    assert (await gateway.call("GET", f"{PATH}/{response['id']}")).status == 503


async def test_a_conversation_goes_on_without_the_earlier_instructions(gateway: Gateway) -> None:
    first = await created(gateway, instructions="Be kind")
    second = await created(gateway, input="And?", previous_response_id=first["id"])
    await created(
        gateway, input="So?", previous_response_id=second["id"], instructions="Be brief", store=False
    )
    assert [(message.role, message.content) for message in messages_of(gateway)] == [
        ("system", "Be brief"),
        ("user", "Hi"),
        ("assistant", "Hello world"),
        ("user", "And?"),
        ("assistant", "Hello world"),
        ("user", "So?"),
    ]


async def test_the_items_of_an_input_are_listed_with_those_before_it(gateway: Gateway) -> None:
    first = await created(gateway)
    second = await created(gateway, input="And?", previous_response_id=first["id"])
    path = f"{PATH}/{second['id']}/input_items"
    listed = (await gateway.call("GET", path)).json
    ITEMS.validate_python(listed, strict=True)
    assert [item["content"][0]["text"] for item in listed["data"]] == ["And?", "Hello world", "Hi"]
    assert not listed["has_more"]
    page = (await gateway.call("GET", f"{path}?order=asc&limit=1")).json
    assert (page["has_more"], page["data"][0]["content"][0]["text"]) == (True, "Hi")
    rest = (await gateway.call("GET", f"{path}?order=asc&after={page['last_id']}")).json
    assert [item["id"] for item in rest["data"]] == [item["id"] for item in reversed(listed["data"][:2])]
    for query in ("limit=0", "limit=101", "limit=x", "order=up"):
        assert (await gateway.call("GET", f"{path}?{query}")).status == 400
    assert (await gateway.call("GET", f"{path}?after=msg_1")).status == 404


async def test_a_chain_with_a_deleted_part_is_refused(gateway: Gateway) -> None:
    first = await created(gateway)
    second = await created(gateway, previous_response_id=first["id"])
    await gateway.call("DELETE", f"{PATH}/{first['id']}")
    error = await refused(gateway, "previous_response_id", previous_response_id=second["id"])
    assert first["id"] in error["message"]


async def test_a_tool_is_called_and_its_output_goes_back(gateway: Gateway) -> None:
    gateway.port.answer_with(*CALL)
    first = await created(gateway, tools=[WEATHER])
    (call,) = first["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "weather",
        {"city": "Rome"},
    )
    assert first["tools"][0]["name"] == "weather"
    gateway.port.answer_with(*HELLO)
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    await created(gateway, input=[output], previous_response_id=first["id"], tools=[WEATHER])
    asked_for = ToolCall(id=call["call_id"], name="weather", arguments=call["arguments"])
    assert messages_of(gateway)[1:] == [
        ChatMessage(role="assistant", content="", tool_calls=[asked_for]),
        ChatMessage(role="tool", content="sunny", name="weather", tool_call_id=call["call_id"]),
    ]


async def test_a_whole_output_given_back_is_the_conversation_it_was(gateway: Gateway) -> None:
    gateway.port.answer_with(Tokens(text="<think>hm</think>\n\nSee: "), *CALL)
    output = (await created(gateway, tools=[WEATHER]))["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    answer = {"type": "function_call_output", "call_id": output[2]["call_id"], "output": "sunny"}
    gateway.port.answer_with(*HELLO)
    await created(gateway, input=[{"role": "user", "content": "Hi"}, *output, answer])
    turn = messages_of(gateway)[1]
    assert (turn.role, turn.reasoning, turn.tool_calls[0].name) == ("assistant", "hm", "weather")
    references = [{"type": "item_reference", "id": item["id"]} for item in output]
    await created(gateway, input=[{"role": "user", "content": "Hi"}, *references, answer])
    assert messages_of(gateway)[1] == turn


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "time"}),
        ({"type": "function", "name": "time"}, {"time"}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]},
            {"time"},
        ),
    ],
)
async def test_a_tool_that_must_be_called_is_enforced(gateway: Gateway, choice: Any, names: set[str]) -> None:
    tools = [WEATHER, {"type": "function", "name": "time"}]
    reply = await gateway.post(PATH, asked(tools=tools, tool_choice=choice))
    assert reply.json["tool_choice"] == choice
    work = work_of(gateway)
    assert isinstance(work.structure, JsonSchema)
    assert isinstance(work.prompt, ChatPrompt)
    assert {tool.name for tool in work.prompt.tools} == names


async def test_a_format_is_enforced_and_echoed(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    response = await created(gateway, text={"format": {"type": "json_schema", "name": "s", "schema": schema}})
    structure = work_of(gateway).structure
    assert isinstance(structure, JsonSchema)
    assert json.loads(structure.schema) == schema
    assert response["text"]["format"]["schema"] == schema


async def test_an_image_is_taken_as_data_alone(gateway: Gateway) -> None:
    parts = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": PNG}]
    await created(gateway, input=[{"role": "user", "content": parts}])
    (image,) = messages_of(gateway)[0].images
    assert (image.media_type, image.position) == ("image/png", 5)
    await refused(gateway, "input", model="plain", input=[{"role": "user", "content": parts}])
    parts[1]["image_url"] = "http://169.254.169.254/"
    error = await refused(
        gateway, "input[0].content[1].image_url", input=[{"role": "user", "content": parts}]
    )
    assert "fetches no URL" in error["message"]


async def test_a_pipeline_answers_too(gateway: Gateway) -> None:
    response = await created(gateway, model="pipeline/rag-docs", parameters={"k": "v"})
    assert response["model"] == "pipeline/rag-docs"
    work = gateway.port.streams[-1].work
    assert isinstance(work, RunPipeline)
    assert (work.pipeline, work.parameters) == ("rag-docs", {"k": "v"})


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("background", {"background": True}),
        ("conversation", {"conversation": "conv_1"}),
        ("prompt", {"prompt": {"id": "p"}}),
        ("truncation", {"truncation": "some"}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("tools[0].name", {"tools": [{"type": "function"}]}),
        ("tool_choice.type", {"tool_choice": {"type": "file_search"}}),
        ("tool_choice", {"tool_choice": "required"}),
        ("stream_options", {"stream_options": {}}),
        ("input", {"input": None}),
        ("input", {"input": ""}),
        ("input", {"input": []}),
        ("input", {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}),
        ("input[0].type", {"input": [{"type": "computer_call"}]}),
        ("input[0].role", {"input": [{"type": "message", "content": "x"}]}),
        ("input[0].role", {"input": [{"role": "tool", "content": "x"}]}),
        ("input[0].content", {"input": [{"role": "user"}]}),
        ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "input_file"}]}]}),
        ("input[0].content[0].type", {"input": [{"role": "user", "content": [{"type": "output_text"}]}]}),
        ("input[0].content[0].text", {"input": [{"role": "user", "content": [{"type": "input_text"}]}]}),
        ("input[0].id", {"input": [{"type": "item_reference", "id": "msg_nothing"}]}),
        ("input[0].call_id", {"input": [{"type": "function_call", "name": "f", "arguments": ""}]}),
        ("text.format.name", {"text": {"format": {"type": "json_schema", "schema": {}}}}),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "n"}}}),
        ("text.format.type", {"text": {"format": {"type": "xml"}}}),
        ("include[0]", {"include": ["everything"]}),
        ("temperature", {"temperature": 3}),
        ("top_logprobs", {"top_logprobs": 21}),
        ("metadata", {"metadata": {str(index): "" for index in range(17)}}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("previous_response_id", {"previous_response_id": "resp_nothing"}),
        ("model", {"model": 3}),
        ("parameters", {"parameters": {"a": "b"}}),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name(
    gateway: Gateway, param: str, fields: dict[str, Any]
) -> None:
    await refused(gateway, param, **fields)


async def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    assert (await refused(gateway, "model", status=404, model="none"))["code"] == "model_not_found"


async def test_fields_of_no_meaning_are_accepted(gateway: Gateway) -> None:
    await created(gateway, prompt_cache_retention="24h", something_new=1, truncation="disabled")


async def test_log_probabilities_are_asked_for_by_include(gateway: Gateway) -> None:
    await created(gateway, include=["message.output_text.logprobs"])
    assert work_of(gateway).sampling.logprobs == 0
    await created(gateway, top_logprobs=3)
    assert work_of(gateway).sampling.logprobs == 3
    await created(gateway)
    assert work_of(gateway).sampling.logprobs is None


async def test_a_conversation_that_is_too_long_loses_its_older_half_where_that_is_asked_for(
    gateway: Gateway,
) -> None:
    def answer(stream: FakeStream) -> None:
        if len(messages_of(gateway)) > 3:
            stream.fail(ContextLengthExceeded("too long", param="messages"))
        else:
            stream.push(*HELLO)

    gateway.port.answer = answer
    turns = [{"role": "developer", "content": "Be kind"}]
    turns += [{"role": "user", "content": str(number)} for number in range(8)]
    response = await created(gateway, input=turns, truncation="auto")
    assert [message.content for message in messages_of(gateway)] == ["Be kind", "6", "7"]
    listed = await gateway.call("GET", f"{PATH}/{response['id']}/input_items")
    assert len(listed.json["data"]) == 9
    assert (await refused(gateway, "input", input=turns))["code"] == "context_length_exceeded"


async def test_a_failure_before_the_first_event_is_a_plain_error(gateway: Gateway) -> None:
    gateway.port.fail_with(WorkerLost("the worker died"))
    for is_streamed in (False, True):
        reply = await gateway.post(PATH, asked(stream=is_streamed))
        assert (reply.status, reply.error["code"]) == (503, "worker_lost")


async def test_a_failure_after_it_ends_the_stream_and_is_stored(gateway: Gateway) -> None:
    gateway.port.answer = lambda stream: None
    client = gateway.open("POST", PATH, asked(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="He"))
    await client.has_seen(b"output_text.delta")
    stream.fail(WorkerLost("the worker died"))
    reply = await client.reply()
    assert b"[DONE]" not in reply.body
    events = events_of(reply)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    found = await gateway.call("GET", f"{PATH}/{events[-1]['response']['id']}")
    assert found.json["status"] == "failed"
    assert found.json["output"][0]["content"][0]["text"] == "He"


@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_a_running_response_is_cancelled_from_any_gateway(is_elsewhere: bool) -> None:
    broker = MemoryBroker()
    gateway, other = (Gateway(MODELS, bus=broker.connect(name)) for name in ("one", "two"))
    await gateway.responses.start()
    await other.responses.start()
    client = gateway.open("POST", PATH, asked(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="He"))
    await client.has_seen(b"output_text.delta")
    (created_event, *_) = events_of(client.seen())
    response_id = created_event["response"]["id"]
    reply = await (other if is_elsewhere else gateway).post(f"{PATH}/{response_id}/cancel")
    assert (reply.status, reply.json["status"]) == (200, "cancelled")
    RESPONSE.validate_python(reply.json, strict=True)
    assert stream.cancel_reason == "cancelled by id"
    events = events_of(await client.reply())
    assert events[-1]["response"]["status"] == "cancelled"
    assert events[-1]["response"] == reply.json
    again = await gateway.post(f"{PATH}/{response_id}/cancel")
    assert (again.status, again.json) == (200, reply.json)


async def test_a_cancelled_response_that_is_not_streamed_is_answered_as_it_is(gateway: Gateway) -> None:
    gateway.port.answer = lambda stream: None
    client = gateway.open("POST", PATH, asked())
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="He"))
    await asyncio.sleep(0)
    response_id = stream.request_id.replace("-", "_", 1)
    assert (await gateway.post(f"{PATH}/{response_id}/cancel")).status == 200
    reply = await client.reply()
    assert (reply.status, reply.json["status"]) == (200, "cancelled")
    assert reply.json["output"][0]["content"][0]["text"] == "He"


async def test_a_finished_response_cannot_be_cancelled(gateway: Gateway) -> None:
    response = await created(gateway)
    reply = await gateway.post(f"{PATH}/{response['id']}/cancel")
    assert (reply.status, reply.error["code"]) == (409, "conflict")
    assert (await gateway.post(f"{PATH}/resp_nothing/cancel")).status == 404


async def test_a_client_that_leaves_ends_its_response(gateway: Gateway) -> None:
    gateway.port.answer = lambda stream: None
    client = gateway.open("POST", PATH, asked(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="He"))
    await client.has_seen(b"output_text.delta")
    client.disconnect()
    while stream.cancel_reason is None:  # noqa: ASYNC110 - the handler's task ends in a turn of its own
        await asyncio.sleep(0)
    assert len(gateway.in_flight) == 0


@pytest.mark.parametrize("name", ["compact", "input_tokens"])
async def test_parts_of_the_api_that_are_not_there_are_not_found(gateway: Gateway, name: str) -> None:
    reply = await gateway.post(f"{PATH}/{name}", {"model": "tiny"})
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")


async def test_a_stored_response_cannot_be_streamed_again(gateway: Gateway) -> None:
    response = await created(gateway)
    reply = await gateway.call("GET", f"{PATH}/{response['id']}?stream=true")
    assert (reply.status, reply.error["param"]) == (400, "stream")
