"""pydantic-ai."""

from openai import AsyncOpenAI
from promises import KEY, LIMITED_KEY, MODEL, URL, main, promise, raises, until_in_flight
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def provider(key):
    # Its default client would wait out the minute of a used-up quota.
    return OpenAIProvider(openai_client=AsyncOpenAI(base_url=URL, api_key=key, max_retries=0))


def chat_model(name=MODEL, key=KEY):
    return OpenAIChatModel(name, provider=provider(key))


class City(BaseModel):
    name: str
    population: int


@promise
def a_run_answers_with_text_and_usage():
    found = Agent(chat_model(), model_settings={"max_tokens": 200}).run_sync("Say hello.")
    assert found.output
    usage = found.usage() if callable(found.usage) else found.usage
    assert usage.output_tokens > 0


@promise
async def a_run_streams_its_text():
    async with Agent(chat_model()).run_stream("Say hello.") as run:
        pieces = [piece async for piece in run.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 1


@promise
def a_tool_is_called_and_its_result_is_answered():
    agent, cities = Agent(chat_model()), []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Tell the weather of a city."""
        cities.append(city)
        return "sunny"

    found = agent.run_sync("What is the weather in Paris?")
    assert len(cities) == 1
    assert found.output


@promise
def structured_output_validates_by_schema_and_by_tool():
    for wanted in (NativeOutput(City), ToolOutput(City)):
        found = Agent(chat_model(), output_type=wanted).run_sync("A city please")
        assert isinstance(found.output, City), wanted


@promise
def the_responses_api_answers_and_calls_tools():
    model = OpenAIResponsesModel(MODEL, provider=provider(KEY))
    assert Agent(model).run_sync("Say hello.").output
    found = Agent(model, output_type=ToolOutput(City)).run_sync("A city please")
    assert isinstance(found.output, City)


@promise
def errors_carry_the_status():
    cases = {
        401: lambda: Agent(chat_model(key="sk-nobody")).run_sync("hello"),
        404: lambda: Agent(chat_model(name="nope")).run_sync("hello"),
        400: lambda: Agent(chat_model(), model_settings={"temperature": 9.0}).run_sync("hello"),
        429: lambda: [Agent(chat_model(key=LIMITED_KEY)).run_sync("hello") for _ in range(3)],
    }
    for status, call in cases.items():
        assert raises(ModelHTTPError, call).status_code == status


@promise
async def leaving_a_stream_frees_the_request():
    agent = Agent(chat_model(), model_settings={"max_tokens": 20000})
    async with agent.run_stream("Say hello.") as run:
        async for _ in run.stream_text(delta=True, debounce_by=None):
            until_in_flight(1)
            break
        await run.cancel()
    until_in_flight(0)


main()
