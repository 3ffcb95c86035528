"""Chat and completions through the application: what clients of the OpenAI API rely on."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway_driver import HELLO, FakeStream, Gateway, chat
from sage_core import BadRequest, ContextLengthExceeded, DeadlineExceeded, EngineError, Overloaded, WorkerLost
from sage_wire.messages import (
    Annotated,
    ChatMessage,
    ChatPrompt,
    Completed,
    Generate,
    Hit,
    RunPipeline,
    Sampling,
    TextPrompt,
    TokenPrompt,
    Tokens,
    Usage,
    Vectors,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


async def test_chat_answers_as_openai_does(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(temperature=0, max_tokens=5, stop="x", seed=3))
    assert reply.status == 200
    answer = ChatCompletion.model_validate(reply.json, strict=True)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        2,
        9,
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    (stream,) = gateway.port.streams
    assert stream.pool == "tiny"
    assert stream.request_id == answer.id == reply.headers["x-request-id"]
    assert stream.work == Generate(
        model="tiny",
        prompt=ChatPrompt(messages=[ChatMessage(role="user", content="Hi")]),
        sampling=Sampling(max_tokens=5, temperature=0.0, stop=["x"], seed=3),
        gather_ms=250,
    )


async def test_the_role_comes_first_then_text_then_one_finish_reason_then_done(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(stream=True))
    *events, done = reply.events
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" and chunk.model == "tiny" for chunk in chunks)
    choices = [chunk.choices[0] for chunk in chunks]
    assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", "")
    assert all(choice.delta.role is None for choice in choices[1:])
    assert [choice.delta.content for choice in choices[1:-1]] == ["Hello", " world"]
    assert [choice.finish_reason for choice in choices] == [None] * 3 + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)


async def test_include_usage_adds_one_chunk_without_choices_before_done(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(stream=True, stream_options={"include_usage": True}))
    *events, last, done = reply.events
    assert done == "[DONE]"
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 9
    ChatCompletionChunk.model_validate(last, strict=True)


async def test_one_batch_of_tokens_is_one_send(gateway: Gateway) -> None:
    client = gateway.open("POST", CHAT, chat(stream=True))
    await client.reply()
    assert len(client.writes) == 1


async def test_the_first_token_leaves_before_the_second_is_there() -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="first"))
    await client.has_seen(b"first")
    stream.push(Tokens(text="second"), Completed())
    reply = await client.reply()
    assert [event["choices"][0]["delta"].get("content") for event in reply.events[:-1]] == [
        "", "first", "second", None,
    ]  # fmt: skip


@pytest.mark.parametrize("text", ['\u2028 \x00 "quoted" \\ \n\r', "data: [DONE]\n\n", "日本語 🎉", "\x7f"])
async def test_any_text_survives_the_stream(text: str) -> None:
    gateway = Gateway()
    gateway.port.answer_with(Tokens(text=text), Completed())
    reply = await gateway.post(CHAT, chat(stream=True))
    assert reply.events[1]["choices"][0]["delta"]["content"] == text


async def test_an_answer_without_any_text_is_still_whole() -> None:
    gateway = Gateway()
    gateway.port.answer_with(Tokens(text="", token_ids=[2]), Completed(finish_reason="length"))
    streamed = await gateway.post(CHAT, chat(stream=True))
    assert [event["choices"][0]["delta"] for event in streamed.events[:-1]] == [
        {"role": "assistant", "content": ""},
        {},
    ]
    whole = await gateway.post(CHAT, chat())
    assert whole.json["choices"][0]["message"]["content"] == ""
    assert whole.json["choices"][0]["finish_reason"] == "length"


async def test_text_parts_are_joined_and_every_role_is_kept(gateway: Gateway) -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "developer", "content": "c"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "d", "name": "bob"},
    ]
    await gateway.post(CHAT, chat(messages=messages))
    work = gateway.port.streams[0].work
    assert isinstance(work, Generate)
    assert isinstance(work.prompt, ChatPrompt)
    assert work.prompt.messages == [
        ChatMessage(role="system", content="a\nb"),
        ChatMessage(role="developer", content="c"),
        ChatMessage(role="assistant", content=""),
        ChatMessage(role="user", content="d", name="bob"),
    ]


SOURCES = [
    Hit(source="docs/a.md", position=2, text="passage", score=0.5, title="A"),
    Hit(source="docs/b.md", position=0, text="other", score=0.25),
]
PIPELINE_EVENTS = (
    Annotated(sources=SOURCES),
    Annotated(stage="retrieve", stage_ms=12.5),
    *HELLO[:-1],
    Annotated(stage="answer", stage_ms=30.0),
    HELLO[-1],
)
SHOWN_SOURCES = [
    {"source": "docs/a.md", "title": "A", "position": 2, "score": 0.5, "text": "passage"},
    {"source": "docs/b.md", "title": None, "position": 0, "score": 0.25, "text": "other"},
]
STAGES = {"retrieve": 12.5, "answer": 30.0}


async def test_a_pipeline_is_a_model_and_names_its_sources_and_stage_times() -> None:
    gateway = Gateway()
    gateway.port.answer_with(*PIPELINE_EVENTS)
    reply = await gateway.post(CHAT, chat(model="pipeline/rag-docs", max_tokens=9))
    ChatCompletion.model_validate(reply.json, strict=True)
    assert reply.json["choices"][0]["message"]["sources"] == SHOWN_SOURCES
    assert reply.json["sage"] == {"stages": STAGES}
    (stream,) = gateway.port.streams
    assert stream.pool == "pipeline/rag-docs"
    assert stream.work == RunPipeline(
        pipeline="rag-docs",
        messages=[ChatMessage(role="user", content="Hi")],
        sampling=Sampling(max_tokens=9),
    )


async def test_parameters_reach_the_pipeline_and_are_refused_for_a_plain_model() -> None:
    gateway = Gateway()
    gateway.port.answer_with(*PIPELINE_EVENTS)
    await gateway.post(CHAT, chat(model="pipeline/rag-docs", parameters={"collection": "notes"}))
    (stream,) = gateway.port.streams
    assert isinstance(stream.work, RunPipeline)
    assert stream.work.parameters == {"collection": "notes"}
    refused = await gateway.post(CHAT, chat(parameters={"collection": "notes"}))
    assert refused.status == 400
    assert refused.json["error"]["param"] == "parameters"


async def test_a_streamed_pipeline_sends_sources_as_they_come_and_stage_times_at_the_end() -> None:
    gateway = Gateway()
    gateway.port.answer_with(*PIPELINE_EVENTS)
    reply = await gateway.post(CHAT, chat(model="pipeline/rag-docs", stream=True))
    *events, _ = reply.events
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
    assert [event.get("sources") for event in events] == [None, SHOWN_SOURCES, None, None, None]
    assert [event.get("sage") for event in events] == [None] * 4 + [{"stages": STAGES}]


async def test_models_that_are_no_pipelines_show_no_extensions(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat())
    assert "sage" not in reply.json
    assert "sources" not in reply.json["choices"][0]["message"]


async def test_auto_is_the_first_generating_model_and_the_answer_names_it(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(model="auto"))
    assert reply.json["model"] == "tiny"
    assert gateway.port.streams[0].pool == "tiny"


async def test_an_unknown_model_is_404_before_anything_is_sent(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(model="gpt-9", stream=True))
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    assert reply.error["param"] == "model"
    assert "tiny" in reply.error["message"]
    assert "pipeline/rag-docs" in reply.error["message"]
    assert "operator" not in reply.error["message"]
    assert gateway.port.streams == []


async def test_a_model_for_something_else_is_refused_with_what_it_does(gateway: Gateway) -> None:
    reply = await gateway.post(CHAT, chat(model="mini"))
    assert reply.status == 400
    assert reply.error["param"] == "model"
    assert "embed and rerank" in reply.error["message"]


async def test_operators_cannot_be_asked_for(gateway: Gateway) -> None:
    assert (await gateway.post(CHAT, chat(model="operator/split"))).status == 404


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("function_call", {"name": "f"}),
        ("top_logprobs", 3),
        ("truncate_prompt_tokens", 5),
        ("use_beam_search", True),
        ("skip_special_tokens", False),
        ("chat_template", "{{ messages }}"),
        ("cache_salt", "x"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("web_search_options", {"user_location": None}),
        ("store", True),
    ],
)
async def test_what_is_not_supported_is_refused_by_name(gateway: Gateway, field: str, value: Any) -> None:
    reply = await gateway.post(CHAT, chat(**{field: value}))
    assert reply.status == 400
    assert reply.error["param"] == field
    assert reply.error["type"] == "invalid_request_error"
    assert gateway.port.streams == []


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "top_logprobs": 0, "logit_bias": {}},
        {
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "store": False,
            "stop": [],
            "audio": None,
        },
        {
            "stop": None,
            "stream": None,
            "stream_options": None,
            "max_tokens": None,
            "temperature": None,
            "n": None,
        },
        {
            "user": "u",
            "metadata": {"k": "v"},
            "parallel_tool_calls": True,
            "top_k": 5,
            "anything": {"x": [1]},
        },
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"top_p": 0},
    ],
)
async def test_what_asks_for_nothing_special_is_accepted(gateway: Gateway, fields: dict[str, Any]) -> None:
    assert (await gateway.post(CHAT, chat(**fields))).status == 200


async def test_top_p_of_zero_is_greedy_not_an_error(gateway: Gateway) -> None:
    await gateway.post(CHAT, chat(top_p=0))
    work = gateway.port.streams[0].work
    assert isinstance(work, Generate)
    assert work.sampling.top_p is not None
    assert 0 < work.sampling.top_p < 0.001


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user"}], "messages[0].content"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
            "messages[0].content[0].image_url",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].image_url.url",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].input_audio"),
        ([{"role": "user", "content": [{"type": "file"}]}], "messages[0].content[0].file"),
        ([{"role": "user", "content": [{"type": "poem"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "messages[1].tool_call_id"),
        (
            [{"role": "tool", "content": "x", "tool_call_id": "c1"}],
            "messages[0].tool_call_id",
        ),
        ([{"role": "function", "content": "x", "name": "f"}], "messages[0].name"),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
            "messages[0].tool_calls[0].function",
        ),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        (["x"], "messages[0]"),
        ([], "messages"),
        ("x", "messages"),
    ],
)
async def test_a_wrong_message_is_named(gateway: Gateway, messages: Any, param: str) -> None:
    reply = await gateway.post(CHAT, chat(messages=messages))
    assert reply.status == 400
    assert reply.error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"seed": 10**20}, "seed"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
    ],
)
async def test_a_wrong_value_is_400_with_its_param(gateway: Gateway, fields: Any, param: str) -> None:
    reply = await gateway.post(CHAT, chat(**fields))
    assert reply.status == 400
    assert reply.error["param"] == param


async def test_a_service_tier_is_echoed_and_chooses_the_class(gateway: Gateway) -> None:
    flex = await gateway.post(CHAT, chat(service_tier="flex"))
    assert flex.json["service_tier"] == "flex"
    auto = await gateway.post(CHAT, chat(service_tier="auto", stream=True))
    assert auto.events[0]["service_tier"] == "default"
    named = await gateway.post(CHAT, chat(), headers={"x-slo-class": "normal"})
    assert "service_tier" not in named.json
    assert [stream.slo_class for stream in gateway.port.streams] == ["batch", "interactive", "normal"]


@pytest.mark.parametrize(
    ("error", "status", "code", "should_retry"),
    [
        (BadRequest("no"), 400, "invalid_value", "false"),
        (ContextLengthExceeded("too long", param="messages"), 400, "context_length_exceeded", "false"),
        (Overloaded("full", retry_after=2.5), 429, "overloaded", "true"),
        (WorkerLost("gone"), 503, "worker_lost", "true"),
        (DeadlineExceeded("late"), 504, "deadline_exceeded", "false"),
        (EngineError("broken"), 500, "engine_error", "false"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_failure_before_the_first_token_is_a_plain_error(
    error: Exception, status: int, code: str, should_retry: str, is_streamed: bool
) -> None:
    gateway = Gateway()
    gateway.port.fail_with(error)
    reply = await gateway.post(CHAT, chat(stream=is_streamed))
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.error["code"] == code
    assert reply.headers["x-should-retry"] == should_retry
    assert ("retry-after" in reply.headers) == (should_retry == "true")


async def test_retry_after_is_whole_seconds_and_exact_milliseconds() -> None:
    gateway = Gateway()
    gateway.port.fail_with(Overloaded("full", retry_after=2.5))
    reply = await gateway.post(CHAT, chat())
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("3", "2500")


async def test_a_failure_in_mid_stream_is_an_event_and_no_success() -> None:
    gateway = Gateway()
    client = gateway.open("POST", CHAT, chat(stream=True))
    stream = await gateway.port.next_stream()
    stream.push(Tokens(text="half"))
    await client.has_seen(b"half")
    stream.fail(WorkerLost("the worker died"))
    reply = await client.reply()
    assert reply.status == 200
    assert reply.events[-1] == {
        "error": {"message": "the worker died", "type": "server_error", "param": None, "code": "worker_lost"}
    }
    assert all(event["choices"][0]["finish_reason"] is None for event in reply.events[:-1])


async def test_an_event_that_makes_no_sense_is_an_internal_error_not_a_hang(gateway: Gateway) -> None:
    gateway.port.answer_with(Vectors(offset=0, dim=1, data=b"\0\0\0\0"))
    for is_streamed in (False, True):
        reply = await gateway.post(CHAT, chat(stream=is_streamed))
        assert reply.status == 500
        assert reply.error["code"] == "internal_error"


async def test_a_bug_costs_its_request_alone_and_says_nothing_of_itself(gateway: Gateway) -> None:
    gateway.port.fail_with(KeyError("secret"))
    reply = await gateway.post(CHAT, chat())
    assert reply.status == 500
    assert "secret" not in reply.body.decode()
    gateway.port.answer_with(*HELLO)
    assert (await gateway.post(CHAT, chat())).status == 200


async def test_a_completion_of_text(gateway: Gateway) -> None:
    reply = await gateway.post(COMPLETIONS, {"model": "tiny", "prompt": "Once"})
    answer = Completion.model_validate(reply.json, strict=True)
    assert answer.choices[0].text == "Hello world"
    assert gateway.port.streams[0].work == Generate(
        model="tiny", prompt=TextPrompt(text="Once"), sampling=Sampling(max_tokens=16), gather_ms=250
    )


async def test_a_completion_streams(gateway: Gateway) -> None:
    body = {"model": "tiny", "prompt": "Once", "stream": True, "stream_options": {"include_usage": True}}
    *events, last, done = (await gateway.post(COMPLETIONS, body)).events
    assert done == "[DONE]"
    # OpenAI's type has no null finish_reason, its API and its client do; so only the last chunks are checked whole.
    Completion.model_validate(events[-1], strict=True)
    Completion.model_validate(last, strict=True)
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello world"
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
    assert last["usage"]["total_tokens"] == 9


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [TextPrompt(text="a")]),
        (["a"], [TextPrompt(text="a")]),
        ([1, 2], [TokenPrompt(token_ids=[1, 2])]),
        ([[1], [2, 3]], [TokenPrompt(token_ids=[1]), TokenPrompt(token_ids=[2, 3])]),
        (["a", "b"], [TextPrompt(text="a"), TextPrompt(text="b")]),
        ("", [TextPrompt(text="")]),
    ],
)
async def test_a_prompt_is_text_or_token_ids_or_several(gateway: Gateway, prompt: Any, expected: Any) -> None:
    reply = await gateway.post(COMPLETIONS, {"model": "tiny", "prompt": prompt})
    assert reply.status == 200
    assert [stream.work.prompt for stream in gateway.port.streams] == expected  # type: ignore[union-attr]
    assert len({stream.request_id for stream in gateway.port.streams}) == len(expected)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_several_prompts_are_several_choices_with_summed_usage(is_streamed: bool) -> None:
    gateway = Gateway()

    def answer(stream: FakeStream) -> None:
        assert isinstance(stream.work, Generate)
        assert isinstance(stream.work.prompt, TextPrompt)
        text = stream.work.prompt.text
        stream.push(Tokens(text=text), Completed(usage=Usage(prompt_tokens=2, completion_tokens=1)))

    gateway.port.answer = answer
    body: dict[str, Any] = {"model": "tiny", "prompt": ["a", "b", "c"], "stream": is_streamed}
    if is_streamed:
        body["stream_options"] = {"include_usage": True}
        *events, last, _ = (await gateway.post(COMPLETIONS, body)).events
        texts = {0: "", 1: "", 2: ""}
        for event in events:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert texts == {0: "a", 1: "b", 2: "c"}
        usage = last["usage"]
    else:
        answer_body = Completion.model_validate((await gateway.post(COMPLETIONS, body)).json, strict=True)
        assert [(choice.index, choice.text) for choice in answer_body.choices] == [
            (0, "a"),
            (1, "b"),
            (2, "c"),
        ]
        usage = answer_body.usage.model_dump() if answer_body.usage else {}
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (6, 3)


async def test_when_one_of_several_prompts_fails_the_others_are_cancelled() -> None:
    gateway = Gateway()
    client = gateway.open("POST", COMPLETIONS, {"model": "tiny", "prompt": ["a", "b"]})
    await gateway.port.next_stream()
    first, second = gateway.port.streams
    first.fail(EngineError("broken"))
    assert (await client.reply()).status == 500
    assert second.cancel_reason is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 17}, "n"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"model": "pipeline/rag-docs"}, "model"),
    ],
)
async def test_a_wrong_completion_is_400_with_its_param(gateway: Gateway, fields: Any, param: str) -> None:
    reply = await gateway.post(COMPLETIONS, {"model": "tiny", "prompt": "x"} | fields)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert gateway.port.streams == []


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x"}, {"role": "x", "content": "x"}]},
            "messages[1].role",
            "found 'x'; expected one of assistant, developer, function, system, tool, user",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x"}], "service_tier": "y" * 999},
            "service_tier",
            f"found '{'y' * 60}…'; expected one of auto, default, flex, priority, scale",
        ),
        (
            "/v1/embeddings",
            {"input": "x", "encoding_format": "hex"},
            "encoding_format",
            "found 'hex'; expected one of base64, float",
        ),
    ],
)
async def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(
    gateway: Gateway, path: str, fields: dict[str, Any], param: str, says: str
) -> None:
    reply = await gateway.post(path, {"model": "tiny", **fields})
    assert reply.status == 400
    assert reply.error["param"] == param
    assert reply.error["message"] == f"'{param}': {says}"
