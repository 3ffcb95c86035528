"""LangChain with langchain-openai."""

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai import AuthenticationError, BadRequestError, NotFoundError, RateLimitError
from promises import (
    EMBEDDING_MODEL,
    KEY,
    LIMITED_KEY,
    MODEL,
    URL,
    VECTOR_LENGTH,
    main,
    promise,
    raises,
    until_in_flight,
)
from pydantic import BaseModel


def chat(**changes):
    settings = {"model": MODEL, "base_url": URL, "api_key": KEY, "max_retries": 0, "max_tokens": 20}
    return ChatOpenAI(**(settings | changes))


class City(BaseModel):
    """A city."""

    name: str
    population: int


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


@promise
def a_chat_answers_with_text_and_usage():
    answer = chat().invoke([("system", "Be brief."), ("human", "Say hello.")])
    assert isinstance(answer, AIMessage)
    assert answer.content
    assert answer.usage_metadata["output_tokens"] == 20
    assert answer.response_metadata["finish_reason"] == "length"


@promise
def a_stream_comes_in_pieces_and_ends_with_usage():
    pieces = list(chat(stream_usage=True).stream("Say hello."))
    assert len([piece for piece in pieces if piece.content]) > 1
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    assert whole.usage_metadata["output_tokens"] == 20


@promise
async def an_asynchronous_stream_comes_in_pieces():
    pieces = [piece.content async for piece in chat().astream("Say hello.")]
    assert len(pieces) > 1
    assert "".join(pieces)


@promise
def a_tool_is_called_and_its_result_is_answered():
    bound = chat(max_tokens=None).bind_tools([get_weather])
    question = HumanMessage("What is the weather in Paris?")
    asked = bound.invoke([question])
    (call,) = asked.tool_calls
    assert call["name"] == "get_weather"
    assert set(call["args"]) == {"city"}
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    after = bound.invoke([question, asked, result])
    assert after.content
    assert not after.tool_calls


@promise
def a_streamed_tool_call_adds_up():
    whole = None
    for piece in chat(max_tokens=None).bind_tools([get_weather], tool_choice="any").stream("Weather?"):
        whole = piece if whole is None else whole + piece
    (call,) = whole.tool_calls
    assert call["name"] == "get_weather"
    assert isinstance(call["args"]["city"], str)


@promise
def structured_output_validates_by_schema_by_tool_and_by_json_mode():
    for method in ("json_schema", "function_calling"):
        found = chat(max_tokens=None).with_structured_output(City, method=method).invoke("Paris as JSON")
        assert isinstance(found, City), method
    found = chat(max_tokens=None).with_structured_output(None, method="json_mode").invoke("Paris as JSON")
    assert isinstance(found, dict)


@promise
def a_chat_over_the_responses_api_answers_and_calls_tools():
    answer = chat(use_responses_api=True).invoke("Say hello.")
    assert answer.text
    bound = chat(use_responses_api=True, max_tokens=None).bind_tools([get_weather])
    (call,) = bound.invoke("What is the weather in Paris?").tool_calls
    assert call["name"] == "get_weather"


@promise
def embeddings_have_the_model_s_length():
    embeddings = OpenAIEmbeddings(
        model=EMBEDDING_MODEL, base_url=URL, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
    )
    found = embeddings.embed_documents(["a", "b"])
    assert [len(each) for each in found] == [VECTOR_LENGTH] * 2
    assert embeddings.embed_query("a") == found[0]


@promise
def errors_are_those_of_the_openai_client():
    raises(BadRequestError, lambda: chat(temperature=9).invoke("hello"))
    raises(AuthenticationError, lambda: chat(api_key="sk-nobody").invoke("hello"))
    raises(NotFoundError, lambda: chat(model="nope").invoke("hello"))

    def ask_until_refused():
        for _ in range(3):
            chat(api_key=LIMITED_KEY).invoke("hello")

    raises(RateLimitError, ask_until_refused)


@promise
def leaving_a_stream_frees_the_request():
    stream = chat(max_tokens=20000).stream("Say hello.")
    next(stream)
    until_in_flight(1)
    stream.close()
    until_in_flight(0)


main()
