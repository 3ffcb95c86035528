"""LlamaIndex with OpenAILike."""

import gc

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
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


def model(**changes):
    settings = {
        "model": MODEL, "api_base": URL, "api_key": KEY, "is_chat_model": True, "is_function_calling_model": True,
        "max_retries": 0, "max_tokens": 20, "context_window": 8192,
    }  # fmt: skip
    return OpenAILike(**(settings | changes))


class City(BaseModel):
    """A city."""

    name: str
    population: int


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


HELLO = [ChatMessage(role="user", content="Say hello.")]


@promise
def a_chat_answers_with_text_and_usage():
    answer = model().chat(HELLO)
    assert answer.message.content
    assert answer.raw.usage.completion_tokens == 20


@promise
def a_completion_answers_with_text():
    assert model(is_chat_model=False).complete("Once").text
    assert model().complete("Once").text


@promise
def a_stream_comes_in_pieces():
    pieces = list(model().stream_chat(HELLO))
    assert len(pieces) > 1
    assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].message.content


@promise
async def an_asynchronous_stream_comes_in_pieces():
    pieces = [piece.delta async for piece in await model().astream_chat(HELLO)]
    assert len(pieces) > 1


@promise
def a_tool_is_called_and_its_result_is_answered():
    tool = FunctionTool.from_defaults(get_weather)
    asking = model(max_tokens=None)
    answer = asking.chat_with_tools([tool], user_msg="What is the weather in Paris?")
    (call,) = asking.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather"
    assert set(call.tool_kwargs) == {"city"}
    result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
    history = [ChatMessage(role="user", content="What is the weather in Paris?"), answer.message, result]
    after = asking.chat_with_tools([tool], chat_history=history)
    assert after.message.content


@promise
def structured_output_validates():
    found = model(max_tokens=None).as_structured_llm(City).chat(HELLO)
    assert isinstance(found.raw, City)
    program = FunctionCallingProgram.from_defaults(
        output_cls=City, prompt_template_str="A city please", llm=model(max_tokens=None), tool_required=True
    )
    assert isinstance(program(), City)


@promise
def embeddings_have_the_model_s_length():
    embeddings = OpenAILikeEmbedding(model_name=EMBEDDING_MODEL, api_base=URL, api_key=KEY, max_retries=0)
    found = embeddings.get_text_embedding_batch(["a", "b"])
    assert [len(each) for each in found] == [VECTOR_LENGTH] * 2


@promise
def errors_are_those_of_the_openai_client():
    raises(BadRequestError, lambda: model(additional_kwargs={"top_p": 9}).chat(HELLO))
    raises(AuthenticationError, lambda: model(api_key="sk-nobody").chat(HELLO))
    raises(NotFoundError, lambda: model(model="nope").chat(HELLO))

    def ask_until_refused():
        for _ in range(3):
            model(api_key=LIMITED_KEY).chat(HELLO)

    raises(RateLimitError, ask_until_refused)


@promise
def leaving_a_stream_frees_the_request():
    stream = model(max_tokens=20000).stream_chat(HELLO)
    next(stream)
    until_in_flight(1)
    del stream
    gc.collect()  # LlamaIndex closes nothing itself: the connection goes with the last reference
    until_in_flight(0)


main()
