"""Options of chat: what they ask of the engine, and how they show in whole and streamed answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operation_driver import (
    DONE,
    USER,
    chat_answer,
    chat_chunks,
    chunks,
    end,
    generate,
    plan_chat,
    texts,
)
from sage_core import BadRequest, LimitExceeded
from sage_gateway.operation import Planned
from sage_wire.messages import (
    ChatPrompt,
    Completed,
    Grammar,
    JsonObject,
    JsonSchema,
    Logprob,
    OneOf,
    Pattern,
    TokenBias,
    TokenLogprobs,
    Tokens,
    Usage,
)


def token(text: str, logprob: float = -0.5, *top: tuple[str, float], **fields: Any) -> Tokens:
    likeliest = [Logprob(text=other, logprob=value) for other, value in top]
    chosen = Logprob(text=text, logprob=logprob, **fields)
    return Tokens(text=text, token_ids=[7], logprobs=[TokenLogprobs(chosen=chosen, top=likeliest)])


def test_choices_are_works_with_seeds_of_their_own_and_the_prompt_counts_once() -> None:
    planned = plan_chat(n=3, seed=40)
    assert [generate(planned, index).sampling.seed for index in range(3)] == [40, 41, 42]
    answer = chat_answer(planned, texts("a"), texts("b"), texts("c"))
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 6)
    assert planned.answer.usage == Usage(prompt_tokens=21, completion_tokens=6, cached_tokens=9)


def test_the_last_seed_is_followed_by_the_first() -> None:
    planned = plan_chat(n=2, seed=2**63 - 1)
    assert generate(planned, 1).sampling.seed == -(2**63)


def test_choices_may_be_interleaved_in_a_stream() -> None:
    planned = plan_chat(n=2, stream=True)
    answer = planned.answer
    data = answer.add(1, [Tokens(text="b")]) + answer.add(0, [Tokens(text="a")])
    data += answer.add(0, [DONE]) + answer.add(1, [DONE]) + answer.end()
    events = [json.loads(line[6:]) for line in data.decode().split("\n\n")[:-2]]
    shown = [(event["choices"][0]["index"], event["choices"][0]["delta"]) for event in events]
    role = {"role": "assistant", "content": ""}
    assert shown == [(1, role), (1, {"content": "b"}), (0, role), (0, {"content": "a"}), (0, {}), (1, {})]
    assert answer.finish_reasons == ["stop", "stop"]


def test_logprobs_have_tokens_bytes_and_alternatives() -> None:
    planned = plan_chat(logprobs=True, top_logprobs=2)
    assert generate(planned).sampling.logprobs == 2
    half = token("\N{REPLACEMENT CHARACTER}", -1.0, raw=b"\xe6")
    answer = chat_answer(planned, [token("é", -0.5, ("é", -0.5), ("e", float("-inf"))), half, DONE])
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.logprob, first.bytes) == ("é", -0.5, [195, 169])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("é", -0.5), ("e", -9999.0)]
    assert second.bytes == [0xE6]


def test_logprobs_without_alternatives_ask_for_none() -> None:
    assert generate(plan_chat(logprobs=True)).sampling.logprobs == 0
    assert generate(plan_chat(logprobs=False)).sampling.logprobs is None


@pytest.mark.parametrize("model", ["plain", "caller", "thinker"])
def test_every_token_of_a_stream_has_its_logprobs_once(model: str) -> None:
    words = ["a", " ", "\n", "<tool", "x", "", "b "]
    events = [*(token(word) for word in words), DONE]
    streamed = chat_chunks(plan_chat(model, logprobs=True, stream=True), events)
    shown = [
        entry.token
        for chunk in streamed
        if (logprobs := chunk.choices[0].logprobs) is not None
        for entry in logprobs.content or ()
    ]
    assert shown == words


def test_token_ids_are_shown_where_asked_for() -> None:
    body = end(plan_chat(return_token_ids=True), [token("a"), token("b"), DONE])
    assert body["choices"][0]["token_ids"] == [7, 7]
    assert "logprobs" in body["choices"][0]
    streamed = chunks(plan_chat(return_token_ids=True, stream=True), [token("a"), token("b"), DONE])
    assert [event["choices"][0].get("token_ids") for event in streamed[1:]] == [[7], [7], []]


def test_tokens_may_be_named_by_their_ids() -> None:
    planned = plan_chat(logprobs=True, return_tokens_as_token_ids=True)
    body = end(planned, [token("a", token_id=12), DONE])
    assert body["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:12"


def test_continuous_usage_counts_with_every_chunk() -> None:
    planned = plan_chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    events = chunks(planned, texts("a", "b"))
    assert [event["usage"]["completion_tokens"] for event in events] == [0, 1, 2, 2, 2]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["prompt_tokens"] == 7


def test_a_stop_text_is_told_and_may_be_kept() -> None:
    done = Completed(stop_reason="END", usage=Usage(prompt_tokens=1, completion_tokens=1))
    assert end(plan_chat(stop="END"), texts("a", done=done))["choices"][0]["stop_reason"] == "END"
    kept = end(plan_chat(stop="END", include_stop_str_in_output=True), texts("a", done=done))
    assert kept["choices"][0]["message"]["content"] == "aEND"
    streamed = chunks(
        plan_chat(stop="END", include_stop_str_in_output=True, stream=True), texts("a", done=done)
    )
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed) == "aEND"
    assert streamed[-1]["choices"][0]["stop_reason"] == "END"


def test_an_answer_may_go_on_in_the_last_message_and_repeat_it() -> None:
    messages = [*USER, {"role": "assistant", "content": "Once upon"}]
    planned = plan_chat(
        messages=messages, continue_final_message=True, add_generation_prompt=False, echo=True
    )
    prompt = generate(planned).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.continues_last
    assert chat_answer(planned, texts(" a time")).choices[0].message.content == "Once upon a time"
    streamed = chat_chunks(
        plan_chat(messages=messages, continue_final_message=True, echo=True, stream=True), texts(" a time")
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "Once upon a time"


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        (
            {"reasoning_effort": "none"},
            {"reasoning_effort": "none", "enable_thinking": False, "thinking": False},
        ),
        ({"verbosity": "high"}, {"verbosity": "high"}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"reasoning_effort": "low", "x": [1]}},
            {"reasoning_effort": "low", "x": [1]},
        ),
    ],
)
def test_efforts_and_arguments_become_variables_of_the_template(
    fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    prompt = generate(plan_chat(**fields)).prompt
    assert isinstance(prompt, ChatPrompt)
    assert json.loads(prompt.template_arguments) == arguments


def test_no_variables_are_no_text() -> None:
    prompt = generate(plan_chat(chat_template_kwargs={})).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.template_arguments == ""


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonObject()),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
            JsonSchema(schema=json.dumps(SCHEMA)),
        ),
        ({"guided_json": SCHEMA}, JsonSchema(schema=json.dumps(SCHEMA))),
        ({"guided_json": json.dumps(SCHEMA)}, JsonSchema(schema=json.dumps(SCHEMA))),
        ({"guided_regex": "a+"}, Pattern(regex="a+")),
        ({"guided_choice": ["a", "b"]}, OneOf(options=["a", "b"])),
        ({"guided_grammar": 'root ::= "a"'}, Grammar(ebnf='root ::= "a"')),
        ({"structured_outputs": {"json": SCHEMA}}, JsonSchema(schema=json.dumps(SCHEMA))),
        ({"structured_outputs": {"regex": "a+"}}, Pattern(regex="a+")),
        ({"structured_outputs": {"choice": ["a"]}}, OneOf(options=["a"])),
        ({"structured_outputs": {"grammar": "x"}}, Grammar(ebnf="x")),
        ({"structured_outputs": {"json_object": True}}, JsonObject()),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"structured_outputs": None, "guided_json": None}, None),
    ],
)
def test_every_way_to_ask_for_a_structure_is_one(fields: dict[str, Any], structure: Any) -> None:
    assert generate(plan_chat(**fields)).structure == structure


def test_sampling_beyond_openai_is_passed_on() -> None:
    sampling = generate(
        plan_chat(
            top_k=5,
            min_p=0.1,
            repetition_penalty=1.1,
            min_tokens=2,
            ignore_eos=True,
            stop_token_ids=[3],
            logit_bias={"5": -100, "6": 1.5},
            max_completion_tokens=9,
        )
    ).sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.1)
    assert (sampling.min_tokens, sampling.ignore_eos, sampling.stop_token_ids) == (2, True, [3])
    assert sampling.logit_bias == [TokenBias(token_id=5, bias=-100.0), TokenBias(token_id=6, bias=1.5)]
    assert sampling.max_tokens == 9


@pytest.mark.parametrize("top_k", [-1, 0])
def test_vllms_words_for_no_limit_are_none(top_k: int) -> None:
    assert generate(plan_chat(top_k=top_k)).sampling.top_k is None


def test_only_what_a_client_waits_for_as_a_whole_may_be_gathered() -> None:
    assert generate(plan_chat()).gather_ms > 0
    assert generate(plan_chat(stream=True)).gather_ms == 0


def test_unknown_fields_are_counted_and_known_ones_are_not() -> None:
    known = {
        "user": "u", "metadata": {"k": "v"}, "safety_identifier": "s", "prompt_cache_key": "k", "store": False,
        "prediction": {"type": "content", "content": "x"}, "modalities": ["text"],
    }  # fmt: skip
    assert plan_chat(**known).num_ignored == 0
    assert plan_chat(**known, colour=1, taste={}).num_ignored == 2


def test_the_fingerprint_tells_models_apart_and_stays() -> None:
    one, again = (end(plan_chat(), texts("a"))["system_fingerprint"] for _ in range(2))
    other = end(plan_chat("caller"), texts("a"))["system_fingerprint"]
    assert one == again != other


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {str(10**15): 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1.5": 1}}, "logit_bias"),
        *(
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "a", "schema": {"properties": {"b": {"items": limited}}}},
                    }
                },
                "response_format.json_schema.schema",
            )
            for limited in (
                {"minItems": 10**9},
                {"maxItems": 1e300},
                {"maxProperties": 4_097},
                {"minLength": 32_769},
                {"pattern": "a" * 8_193},
            )
        ),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop": ["x" * 1025]}, "stop[0]"),
        ({"metadata": {str(key): "v" for key in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"user": 5}, "user"),
        ({"reasoning_effort": "max"}, "reasoning_effort"),
        ({"verbosity": "loud"}, "verbosity"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "y" * 16_384}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {str(key): 1 for key in range(65)}}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "a" * 8193}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a" * 65_537]}, "guided_choice"),
        ({"guided_grammar": "a" * 65_537}, "guided_grammar"),
        ({"guided_json": "{"}, "guided_json"),
        ({"model": "pipeline/rag-docs", "n": 2}, "n"),
        ({"model": "pipeline/rag-docs", "logprobs": True}, "logprobs"),
        ({"model": "pipeline/rag-docs", "response_format": {"type": "json_object"}}, "response_format"),
        ({"model": "pipeline/rag-docs", "echo": True}, "echo"),
        ({"model": "pipeline/rag-docs", "chat_template_kwargs": {}}, "chat_template_kwargs"),
    ],
)
def test_a_wrong_option_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises((BadRequest, LimitExceeded)) as caught:
        plan_chat(**fields)
    assert caught.value.param == param


def test_keys_that_are_no_token_ids_are_all_named() -> None:
    with pytest.raises(BadRequest, match="'logit_bias': found 'bad', '1_0'; expected token ids"):
        plan_chat(logit_bias={"bad": 1, "5": 1, "1_0": 2})


def test_bounds_of_a_schema_may_be_at_their_limits_and_its_properties_may_be_called_like_them() -> None:
    limits = {
        "minItems": 4_096,
        "maxLength": 32_768,
        "minProperties": 0,
        "properties": {"maxItems": {"const": 10**9}},
    }
    plan_chat(guided_json=limits)


def test_a_pipeline_takes_what_asks_for_nothing_special() -> None:
    plan_chat("pipeline/rag-docs", n=1, logprobs=False, response_format={"type": "text"}, temperature=0.5)


PARTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"a": 1}}', "a", " ",
         "\n", "é", "<", ""]
    ),
    max_size=8,
)  # fmt: skip


def _planned(model: str, *, stream: bool) -> Planned:
    tools = [] if model == "plain" else [{"type": "function", "function": {"name": "f"}}]
    return plan_chat(model, tools=tools, stream=stream, n=2, logprobs=True)


@given(st.sampled_from(["plain", "caller", "thinker"]), PARTS, PARTS)
def test_a_stream_adds_up_to_the_whole_answer(model: str, first: list[str], second: list[str]) -> None:
    events = [[*(token(part) for part in parts), DONE] for parts in (first, second)]
    whole = chat_answer(_planned(model, stream=False), *events)
    streamed = chat_chunks(_planned(model, stream=True), *events)
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in streamed if chunk.choices[0].index == choice.index]
        assert "".join(chunk.delta.content or "" for chunk in mine) == (choice.message.content or "")
        reasoning = "".join(getattr(chunk.delta, "reasoning_content", None) or "" for chunk in mine)
        assert reasoning == (getattr(choice.message, "reasoning_content", None) or "")
        assert [chunk.finish_reason for chunk in mine if chunk.finish_reason] == [choice.finish_reason]
        calls: dict[int, list[str]] = {}
        for chunk in mine:
            for call in chunk.delta.tool_calls or ():
                assert call.function is not None
                calls.setdefault(call.index, [call.function.name or ""]).append(call.function.arguments or "")
        made = [
            [call.function.name, call.function.arguments]
            for call in choice.message.tool_calls or ()
            if call.type == "function"
        ]
        assert [[parts[0], "".join(parts[1:])] for parts in calls.values()] == made
        tokens = [entry.token for chunk in mine if chunk.logprobs for entry in chunk.logprobs.content or ()]
        assert choice.logprobs is not None
        assert tokens == [entry.token for entry in choice.logprobs.content or ()]
