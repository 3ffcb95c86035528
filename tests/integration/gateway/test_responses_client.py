"""The Responses API as the `openai` client uses it, against a real instance with the emulated engine."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseReasoningItem,
)
from openai.types.responses.response_input_param import FunctionCallOutput
from pydantic import BaseModel

from integration_instances import Instance

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

WITHOUT = ("--without", "embedding-worker", "--without", "operator-worker", "--without", "planner")
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "get_weather",
        "description": "The weather at a place.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    }
]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("responses")
    with Instance("responses", home, "--engine", "emulated", "--port", "0", *WITHOUT) as running:
        yield running


@pytest.fixture
def client(instance: Instance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{instance.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def other(instance: Instance) -> Iterator[openai.OpenAI]:
    """A client of another gateway of the same instance."""
    (runtime,) = instance.home.glob("**/instance.json")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = instance.environment | {
        "SAGE_BUS__URL": json.loads(runtime.read_text())["bus_url"],
        "SAGE_GATEWAY__PORT": str(port),
    }
    process = subprocess.Popen([sys.executable, "-m", "sage_gateway"], env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, transport=httpx.HTTPTransport(retries=10)) as http:
            while http.get("/readyz").status_code != 200:
                time.sleep(0.05)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
            yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return next(iter(client.models.list())).id


def test_a_text_is_answered_and_found_again(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="Say three words\nsage-output-tokens: 3")
    assert response.status == "completed"
    assert response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens == 3
    assert client.responses.retrieve(response.id) == response
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_stream_adds_up_to_its_last_event(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input="Count\nsage-output-tokens: 20") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text
    assert len(deltas) > 1
    found = client.responses.retrieve(final.id)
    assert found.output_text == final.output_text


def test_a_limit_makes_a_response_incomplete(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(
        model=model, input="Go on\nsage-output-tokens: 50", max_output_tokens=16
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_goes_on_from_what_is_stored(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, input="My name is Alice", instructions="Be kind")
    second = client.responses.create(model=model, input="What is my name?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    texts = [part.text for item in items for part in item.content]  # type: ignore[union-attr]
    assert texts == ["My name is Alice", first.output_text, "What is my name?"]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_goes_round(client: openai.OpenAI, model: str, is_streamed: bool) -> None:
    question: Any = {"role": "user", "content": "What is the weather in Rome?"}
    first = asked(client, is_streamed, model=model, input=[question], tools=TOOLS)
    calls = [item for item in first.output if isinstance(item, ResponseFunctionToolCall)]
    assert [call.name for call in calls] == ["get_weather"]
    assert "city" in json.loads(calls[0].arguments)
    output = FunctionCallOutput(type="function_call_output", call_id=calls[0].call_id, output="sunny")
    # Both ways: the client keeps the conversation, or the server does.
    kept = asked(client, is_streamed, model=model, input=[question, *first.output, output], tools=TOOLS)
    chained = asked(
        client, is_streamed, model=model, input=[output], tools=TOOLS, previous_response_id=first.id
    )
    for response in (kept, chained):
        assert isinstance(response.output[0], ResponseOutputMessage)
        assert response.output_text


def asked(client: openai.OpenAI, is_streamed: bool, **fields: Any) -> Response:
    if not is_streamed:
        return client.responses.create(**fields)
    with client.responses.stream(**fields) as stream:
        return stream.get_final_response()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_tool_that_must_be_called_is_called(client: openai.OpenAI, model: str, choice: Any) -> None:
    response = client.responses.create(model=model, input="Hello", tools=TOOLS, tool_choice=choice)
    assert isinstance(response.output[0], ResponseFunctionToolCall)
    assert "city" in json.loads(response.output[0].arguments)


def test_a_format_is_enforced_and_parsed(client: openai.OpenAI, model: str) -> None:
    class Person(BaseModel):
        name: str
        age: int

    response = client.responses.parse(model=model, input="Who?", text_format=Person)
    assert isinstance(response.output_parsed, Person)


def test_reasoning_is_an_item_of_its_own(client: openai.OpenAI, model: str) -> None:
    text = "Think\nsage-reasoning: 5\nsage-output-tokens: 12"
    response = client.responses.create(model=model, input=text)
    reasoning, message = response.output
    assert isinstance(reasoning, ResponseReasoningItem)
    assert reasoning.content
    assert isinstance(message, ResponseOutputMessage)
    assert "<think>" not in response.output_text
    summarised = client.responses.create(model=model, input=text, reasoning={"summary": "auto"})
    assert isinstance(summarised.output[0], ResponseReasoningItem)
    assert summarised.output[0].summary[0].text


def test_log_probabilities_come_with_the_text(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(
        model=model,
        input="Hi\nsage-output-tokens: 4",
        top_logprobs=2,
        include=["message.output_text.logprobs"],
    )
    (message,) = response.output
    assert isinstance(message, ResponseOutputMessage)
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(entry.token for entry in part.logprobs) == response.output_text
    assert len(part.logprobs[0].top_logprobs) == 2


def test_a_stream_is_cancelled_by_its_id(client: openai.OpenAI, model: str) -> None:
    stream = client.responses.create(model=model, input="Go on\nsage-output-tokens: 4000", stream=True)
    began = next(stream)
    assert began.type == "response.created"
    response_id = began.response.id
    assert client.responses.cancel(response_id).status == "cancelled"
    with pytest.raises(openai.APIError, match="cancelled"):
        list(stream)
    assert client.responses.retrieve(response_id).status == "cancelled"
    assert client.responses.cancel(response_id).status == "cancelled"


def test_every_gateway_knows_what_one_of_them_wrote(
    client: openai.OpenAI, other: openai.OpenAI, model: str
) -> None:
    made = client.responses.create(model=model, input="Hi")
    assert other.responses.retrieve(made.id) == made
    other.responses.create(model=model, input="And?", previous_response_id=made.id)
    stream = client.responses.create(model=model, input="Go on\nsage-output-tokens: 4000", stream=True)
    began = next(stream)
    assert began.type == "response.created"
    assert other.responses.cancel(began.response.id).status == "cancelled"
    with pytest.raises(openai.APIError, match="cancelled"):
        list(stream)
    other.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_finished_response_is_not_cancelled(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(model=model, input="Hi")
    with pytest.raises(openai.ConflictError):
        client.responses.cancel(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_nothing")


def test_what_is_not_done_is_refused_by_name(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.responses.create(model=model, input="Hi", background=True)
    assert found.value.param == "background"
    with pytest.raises(openai.BadRequestError) as found:
        client.responses.create(model=model, input="Hi", tools=[{"type": "web_search"}])
    assert found.value.param == "tools[0].type"
    with pytest.raises(openai.BadRequestError) as found:
        client.responses.create(model=model, input="Hi", previous_response_id="resp_nothing")
    assert found.value.code == "previous_response_not_found"


def test_a_response_outlives_the_instance(tmp_path: Path) -> None:
    def run(action: Any) -> Any:
        with (
            Instance("lasting", tmp_path, "--engine", "emulated", "--port", "0", *WITHOUT) as instance,
            openai.OpenAI(base_url=f"{instance.url}/v1", api_key="none", max_retries=0) as client,
        ):
            return action(client)

    made = run(lambda client: client.responses.create(model="auto", input="Remember me"))
    assert run(lambda client: client.responses.retrieve(made.id)) == made
