"""LiteLLM's SDK with its openai/ provider."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is downloaded on import

import litellm
from litellm import completion, embedding
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

litellm.telemetry = False
TARGET = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY, "num_retries": 0, "max_retries": 0}
HELLO = [{"role": "user", "content": "Say hello."}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER},
}


class City(BaseModel):
    name: str
    population: int


@promise
def a_chat_answers_with_text_and_usage():
    answer = completion(**TARGET, messages=HELLO, max_tokens=20)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20


@promise
def a_stream_comes_in_pieces_with_usage():
    pieces = list(
        completion(
            **TARGET, messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [piece.choices[0].delta.content for piece in pieces if piece.choices]
    assert len([text for text in texts if text]) > 1
    assert [piece.usage.completion_tokens for piece in pieces if getattr(piece, "usage", None)] == [20]


@promise
async def an_asynchronous_stream_comes_in_pieces():
    stream = await litellm.acompletion(**TARGET, messages=HELLO, max_tokens=20, stream=True)
    assert len([piece async for piece in stream]) > 1


@promise
def a_tool_is_called_and_its_result_is_answered():
    answer = completion(**TARGET, messages=ASK_WEATHER, tools=[TOOL])
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = completion(
        **TARGET, messages=[*ASK_WEATHER, message.model_dump(), result], tools=[TOOL], max_tokens=20
    )
    assert after.choices[0].message.content


@promise
def structured_output_validates():
    answer = completion(**TARGET, messages=HELLO, response_format=City)
    City.model_validate_json(answer.choices[0].message.content)


@promise
def a_text_completion_and_a_response_answer():
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", api_base=URL, api_key=KEY, prompt="Once", max_tokens=8
    )
    assert text.choices[0].text
    response = litellm.responses(model=f"openai/{MODEL}", api_base=URL, api_key=KEY, input="Say hello.")
    assert response.output[-1].content[0].text


@promise
def embeddings_have_the_model_s_length():
    found = embedding(model=f"openai/{EMBEDDING_MODEL}", api_base=URL, api_key=KEY, input=["a", "b"])
    assert [len(each["embedding"]) for each in found.data] == [VECTOR_LENGTH] * 2


@promise
def documents_are_reranked():
    found = litellm.rerank(
        model=f"jina_ai/{EMBEDDING_MODEL}", api_base=URL, api_key=KEY, query="cats", top_n=2,
        documents=["stock markets fell", "a kitten is a young cat", "rain tomorrow"],
    )  # fmt: skip
    assert len(found.results) == 2
    assert found.results[0]["index"] == 1


@promise
def errors_have_the_classes_of_litellm():
    raises(litellm.BadRequestError, lambda: completion(**TARGET, messages=HELLO, temperature=9.0))
    raises(
        litellm.AuthenticationError, lambda: completion(**(TARGET | {"api_key": "sk-nobody"}), messages=HELLO)
    )
    raises(litellm.NotFoundError, lambda: completion(**(TARGET | {"model": "openai/nope"}), messages=HELLO))

    def ask_until_refused():
        for _ in range(3):
            completion(**(TARGET | {"api_key": LIMITED_KEY}), messages=HELLO, max_tokens=1)

    raises(litellm.RateLimitError, ask_until_refused)


@promise
def closing_a_stream_frees_the_request():
    stream = completion(**TARGET, messages=HELLO, max_tokens=20000, stream=True)
    next(stream)
    until_in_flight(1)
    stream.completion_stream.close()
    until_in_flight(0)


main()
