"""OpenAI's own Python client."""

import json

import openai
from promises import (
    EMBEDDING_MODEL,
    KEY,
    LIMITED_KEY,
    MODEL,
    URL,
    VECTOR_LENGTH,
    WEATHER,
    main,
    promise,
    raises,
    until_in_flight,
)
from pydantic import BaseModel

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER},
}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


class City(BaseModel):
    name: str
    population: int


@promise
def a_chat_answers_with_text_and_usage():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Very brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}],
            },
        ],
        max_completion_tokens=20,
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL


@promise
def a_stream_has_the_text_of_the_whole_answer_and_usage_on_request():
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=30, seed=1, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=30, seed=1, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert len([delta for delta in deltas if delta.content]) > 1
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == 30
    assert len({chunk.id for chunk in chunks}) == 1


@promise
def a_tool_is_called_and_its_result_is_answered():
    answer = client.chat.completions.create(model=MODEL, messages=ASK_WEATHER, tools=[TOOL])
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'}
    after = client.chat.completions.create(
        model=MODEL, messages=[*ASK_WEATHER, choice.message, result], tools=[TOOL], max_tokens=20
    )
    assert after.choices[0].message.content
    assert not after.choices[0].message.tool_calls


@promise
def a_streamed_tool_call_adds_up_to_the_whole_one():
    asked = {"model": MODEL, "messages": ASK_WEATHER, "tools": [TOOL], "tool_choice": "required", "seed": 3}
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == (
        whole[0].function.name,
        whole[0].function.arguments,
    )
    assert final.choices[0].finish_reason == "tool_calls"


@promise
def a_named_tool_is_called_whatever_was_asked():
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[TOOL], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


@promise
def tool_choice_none_calls_nothing():
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK_WEATHER, tools=[TOOL], tool_choice="none", max_tokens=20
    )
    assert not answer.choices[0].message.tool_calls
    assert answer.choices[0].message.content


@promise
def a_parsed_answer_validates_against_its_class():
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


@promise
def a_json_object_is_json():
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "JSON please"}],
        response_format={"type": "json_object"},
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@promise
def log_probabilities_belong_to_the_tokens_of_the_text():
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    tokens = choice.logprobs.content
    assert len(tokens) == 5
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


@promise
def n_choices_are_n_answers():
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 24


@promise
def a_stop_word_ends_the_text_before_it():
    whole = (
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=40, seed=5).choices[0].message
    )
    word = whole.content.split()[3]
    cut = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=40, seed=5, stop=[word]
    ).choices[0]
    assert cut.finish_reason == "stop"
    assert word not in cut.message.content


@promise
def a_service_tier_is_echoed():
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, service_tier="flex")
    assert answer.service_tier == "flex"


@promise
def completions_take_text_lists_and_tokens():
    one = client.completions.create(model=MODEL, prompt="Once", max_tokens=6, echo=True)
    assert one.choices[0].text.startswith("Once")
    two = client.completions.create(model=MODEL, prompt=["Once", "Twice"], max_tokens=6)
    assert [choice.index for choice in two.choices] == [0, 1]
    tokens = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=6)
    assert tokens.usage.prompt_tokens == 3
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(model=MODEL, prompt="Once", max_tokens=6, stream=True)
    )
    assert text


@promise
def embeddings_have_the_model_s_length_as_floats_and_as_base64():
    floats = client.embeddings.create(model=EMBEDDING_MODEL, input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model=EMBEDDING_MODEL, input=["a", "b"])
    assert [each.index for each in packed.data] == [0, 1]
    for left, right in zip(floats.data, packed.data, strict=True):
        assert len(left.embedding) == len(right.embedding) == VECTOR_LENGTH
        assert max(abs(x - y) for x, y in zip(left.embedding, right.embedding, strict=True)) < 1e-6
    short = client.embeddings.create(model=EMBEDDING_MODEL, input="a", dimensions=64)
    assert len(short.data[0].embedding) == 64
    assert floats.usage.prompt_tokens > 0


@promise
def models_are_listed_and_found_by_name():
    names = [model.id for model in client.models.list()]
    assert {MODEL, EMBEDDING_MODEL} <= set(names)
    assert client.models.retrieve(MODEL).id == MODEL


@promise
def a_response_is_created_continued_retrieved_and_deleted():
    first = client.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=30)
    assert first.output_text
    assert first.usage.output_tokens == 30
    second = client.responses.create(
        model=MODEL, input="And you?", previous_response_id=first.id, max_output_tokens=10
    )
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    raises(openai.NotFoundError, lambda: client.responses.retrieve(first.id))


@promise
def a_response_streams_typed_events_in_sequence():
    events = list(client.responses.create(model=MODEL, input="Say hello.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert text


@promise
def a_response_calls_a_tool_and_goes_on_with_its_result():
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
    first = client.responses.create(model=MODEL, input=ASK_WEATHER, tools=[tool])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    second = client.responses.create(
        model=MODEL, input=[result], tools=[tool], previous_response_id=first.id, max_output_tokens=20
    )
    assert second.output_text


@promise
def a_parsed_response_validates_against_its_class():
    answer = client.responses.parse(model=MODEL, input="A city please", text_format=City)
    assert isinstance(answer.output_parsed, City)


@promise
def a_wrong_value_is_a_bad_request_that_names_it():
    error = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=MODEL, messages=HELLO, temperature=9.0),
    )
    assert error.param == "temperature"
    assert error.body["message"]
    wrong = raises(
        openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages="hello")
    )
    assert wrong.param == "messages"


@promise
def an_unknown_key_is_an_authentication_error():
    stranger = openai.OpenAI(base_url=URL, api_key="sk-nobody", max_retries=0)
    error = raises(openai.AuthenticationError, lambda: stranger.models.list())
    assert error.code == "invalid_api_key"


@promise
def an_unknown_model_is_not_found():
    error = raises(openai.NotFoundError, lambda: client.chat.completions.create(model="nope", messages=HELLO))
    assert error.code == "model_not_found"


@promise
def a_used_up_quota_is_a_rate_limit_error_that_says_when_to_come_back():
    poor = openai.OpenAI(base_url=URL, api_key=LIMITED_KEY, max_retries=0)

    def ask_until_refused():
        for _ in range(3):
            poor.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)

    error = raises(openai.RateLimitError, ask_until_refused)
    assert float(error.response.headers["retry-after"]) > 0


@promise
def closing_a_stream_frees_the_request():
    stream = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20000, stream=True)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    until_in_flight(1)
    stream.close()
    until_in_flight(0)


@promise
async def the_asynchronous_client_streams_too():
    async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as waiting:
        stream = await waiting.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=10, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text


main()
