"""What the emulated engine writes when it is asked for more than words."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_client.work_size import measure
from sage_llm_worker.engines.emulated import EmulatedEngine
from sage_llm_worker.engines.emulated_text import bytes_of, ids_of_prompt, ids_of_text, pieces_of
from sage_llm_worker.testing.engine_suite import collect
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Generate,
    Image,
    JsonSchema,
    Resume,
    Sampling,
    TextPrompt,
    TokenBias,
    TokenPrompt,
    ToolCall,
    ToolDefinition,
)

WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 1}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city", "days"],
}
WEATHER = ToolDefinition(name="get_weather", parameters=json.dumps(WEATHER_SCHEMA))
SEARCH = ToolDefinition(name="searchDocs")
ODD = ToolDefinition(name="odd_schema", parameters='{"type": "object", "not": {"required": ["a"]}}')


@pytest.fixture
async def engine():
    engine = EmulatedEngine(default_tokens=8)
    await engine.start()
    yield engine
    await engine.stop()


def chat(*texts, tools=(WEATHER, SEARCH, ODD), role="user", **options):
    messages = [ChatMessage(role=role, content=text) for text in texts]
    return Generate(model="m", prompt=ChatPrompt(messages=messages, tools=list(tools)), **options)


def calls_in(text):
    """Read tool calls as the format `hermes` has them."""
    found = []
    for part in text.split("<tool_call>")[1:]:
        body, rest = part.split("</tool_call>")
        assert rest.strip() == ""
        found.append(json.loads(body))
    return found


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("What is the weather in Oslo?", ["get_weather"]),
        ("use get_weather", ["get_weather"]),
        ("Search the docs and tell me the weather", ["get_weather", "searchDocs"]),
        ("weather\nsage-call: searchDocs", ["searchDocs"]),
        ("weather\nsage-call: nothing_such", []),
        ("Hello", []),
        ("Odd, is it not?", []),
        ("Any schema", ["odd_schema"]),
    ],
)
async def test_tools_are_called_that_the_last_message_asks_for(engine, text, names):
    answer = await collect(engine, chat("weather", text))
    assert [call["name"] for call in calls_in(answer.text)] == names
    assert answer.completed.finish_reason == "stop"
    for call in calls_in(answer.text):
        if call["name"] == "get_weather":
            jsonschema.validate(call["arguments"], WEATHER_SCHEMA)
        else:
            assert call["arguments"] == {}


async def test_a_tool_s_answer_is_not_answered_with_another_call(engine):
    done = chat("the weather is fine", role="tool")
    assert "<tool_call>" not in (await collect(engine, done)).text


async def test_a_call_that_is_cut_says_so_and_goes_on_elsewhere(engine):
    request = chat("the weather", sampling=Sampling(max_tokens=5))
    cut = await collect(engine, request)
    assert cut.completed.finish_reason == "length"
    whole = await collect(engine, chat("the weather"))
    assert whole.text.startswith(cut.text)
    rest = await collect(engine, chat("the weather", resume=whole.first(3)))
    assert whole.first(3).text + rest.text == whole.text


async def test_a_structure_goes_before_tools_and_marks(engine):
    request = chat("weather\nsage-reasoning: 3", structure=JsonSchema(schema='{"enum": [7]}'))
    assert (await collect(engine, request)).text == "7"


CALL = {
    "type": "object",
    "properties": {"name": {"enum": ["get_weather", "calc"]}, "parameters": {"type": "object"}},
    "required": ["name", "parameters"],
}
CALLS = {"type": "array", "minItems": 1, "items": CALL}
ANSWER = {"type": "object", "properties": {"degrees": {"const": 7}}, "required": ["degrees"]}


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("the weather", CALLS, [{"name": "get_weather", "parameters": {}}]),
        ("the weather", {"anyOf": [CALLS, ANSWER]}, [{"name": "get_weather", "parameters": {}}]),
        ("hello", {"anyOf": [CALLS, ANSWER]}, {"degrees": 7}),
        ("hello", CALLS, [{"name": "calc", "parameters": {}}]),
        ("the weather", ANSWER, {"degrees": 7}),
    ],
)
async def test_a_structure_of_calls_has_the_call_that_is_asked_for(engine, text, schema, expected):
    answer = await collect(engine, chat(text, structure=JsonSchema(schema=json.dumps(schema))))
    assert json.loads(answer.text) == expected


@pytest.mark.parametrize(
    "marks", ["sage-reasoning: 5\nsage-output-tokens: 4", "sage-output-tokens: 4\nsage-reasoning: 5"]
)
async def test_reasoning_comes_first_where_the_prompt_asks_for_it(engine, marks):
    answer = await collect(engine, chat(f"hello\n{marks}", tools=()))
    reasoning, _, text = answer.text.partition("\n</think>\n\n")
    assert reasoning.startswith("<think>\n")
    assert len(reasoning.split()) == 1 + 5
    assert len(text.split()) == 4
    assert not text.startswith(" ")
    alone = await collect(engine, chat("hello\nsage-reasoning: 5", tools=()))
    assert len(alone.text.partition("\n</think>\n\n")[2].split()) == 8


async def test_a_call_may_come_after_reasoning(engine):
    answer = await collect(engine, chat("sage-call: get_weather\nsage-reasoning: 2"))
    assert answer.text.startswith("<think>\n")
    assert [call["name"] for call in calls_in(answer.text)] == ["get_weather"]


async def test_ignore_eos_and_min_tokens_lengthen_what_would_end_by_itself(engine):
    def length(**sampling):
        prompt = TextPrompt(text="hello\nsage-output-tokens: 3")
        return Generate(model="m", prompt=prompt, sampling=Sampling(**sampling))

    answers = [
        await collect(engine, length(min_tokens=6)),
        await collect(engine, length(ignore_eos=True, max_tokens=20)),
        await collect(engine, length(max_tokens=20)),
    ]
    assert [answer.completed.usage.completion_tokens for answer in answers] == [6, 20, 3]
    assert [answer.completed.finish_reason for answer in answers] == ["stop", "length", "stop"]


async def test_a_stop_string_waits_for_min_tokens(engine):
    request = Generate(model="m", prompt=TextPrompt(text="hello"), sampling=Sampling(max_tokens=30, seed=1))
    whole = await collect(engine, request)
    early = whole.pieces[2].text
    stopped = await collect(
        engine,
        Generate(
            model="m",
            prompt=request.prompt,
            sampling=Sampling(max_tokens=30, seed=1, stop=[early], min_tokens=10),
        ),
    )
    assert stopped.completed.usage.completion_tokens >= 10
    assert early in stopped.text


async def test_a_bias_may_force_what_no_word_is(engine):
    (token_id,) = ids_of_text("東")
    sampling = Sampling(max_tokens=3, logit_bias=[TokenBias(token_id=token_id, bias=99.0)])
    answer = await collect(engine, Generate(model="m", prompt=TextPrompt(text="x"), sampling=sampling))
    assert answer.text == "東東東"


async def test_ids_of_every_answer_are_its_text(engine):
    for request in (chat("the weather"), chat("hello"), chat("hello\nsage-reasoning: 9")):
        answer = await collect(engine, request)
        assert bytes_of(answer.token_ids).decode() == answer.text


@given(st.text())
def test_every_text_is_tokens_there_and_back(text):
    data = text.encode("utf-8", "surrogatepass")
    assert bytes_of(ids_of_text(text)) == data
    assert len(ids_of_text(text)) == -(-len(data) // 4)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_cut_between_characters(text):
    pieces = pieces_of(text)
    assert "".join(piece for _, piece in pieces) == text
    assert bytes_of([token_id for token_id, _ in pieces]).decode() == text


@given(st.lists(st.integers(0, 2**33 - 1)))
def test_every_id_stands_for_some_bytes(ids):
    assert len(bytes_of(ids)) <= 5 * len(ids)


@given(st.text("aé🙂", max_size=20), st.text("aé🙂", max_size=20), st.booleans())
def test_a_prompt_has_as_many_ids_as_it_is_counted_for(content, arguments, has_tools):
    message = ChatMessage(
        role="assistant",
        content=content,
        reasoning=arguments,
        tool_calls=[ToolCall(id="1", name="f", arguments=arguments)],
        images=[Image(media_type="image/png", data=b"x")],
    )
    prompts = [
        ChatPrompt(messages=[message], tools=[WEATHER] if has_tools else []),
        TextPrompt(text=content),
        TokenPrompt(token_ids=[1, 2, 3]),
    ]
    for prompt in prompts:
        assert len(ids_of_prompt(prompt)) == measure(Generate(model="m", prompt=prompt)).num_prompt_tokens


async def test_a_prompt_with_images_is_counted_and_answered(engine):
    image = Image(media_type="image/png", data=b"x" * 5000)
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content="look", images=[image])])
    answer = await collect(engine, Generate(model="m", prompt=prompt))
    assert answer.completed.usage.prompt_tokens == 4 + 1 + 256


async def test_an_echoed_prompt_comes_whole_in_its_first_piece(engine):
    prompt = TextPrompt(text="é" * 3000)
    request = Generate(model="m", prompt=prompt, sampling=Sampling(max_tokens=1, logprobs=0), echo=True)
    answer = await collect(engine, request)
    echoed = [piece for piece in answer.pieces if piece.is_prompt]
    assert [len(piece.token_ids) for piece in echoed] == [256] * 5 + [220]
    assert [piece.text for piece in echoed] == [prompt.text] + [""] * 5
    raw = b"".join(entry.chosen.raw or entry.chosen.text.encode() for entry in answer.logprobs[:1500])
    assert raw.decode() == prompt.text


async def test_an_engine_without_llguidance_says_what_to_install(engine, monkeypatch):
    import sys

    from sage_core import BadRequest

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BadRequest, match=r"install sage-serve\[llm\]"):
        await collect(engine, chat("x", structure=JsonSchema(schema='{"type": "null"}')))
    # Tools are called all the same, without arguments.
    assert calls_in((await collect(engine, chat("the weather"))).text) == [
        {"name": "get_weather", "arguments": {}}
    ]


async def test_resuming_by_text_alone_counts_tokens(engine):
    whole = await collect(engine, chat("hello"))
    resume = Resume(text=whole.first(3).text, num_tokens=3)
    assert resume.text + (await collect(engine, chat("hello", resume=resume))).text == whole.text
