"""Completions: several prompts with several choices, echo, and the older shape of log probabilities."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion

from operation_driver import DONE, chunks, completion_answer, end, generate, plan_completion, texts
from sage_wire.messages import (
    Completed,
    Event,
    JsonObject,
    Logprob,
    TextPrompt,
    TokenLogprobs,
    Tokens,
    Usage,
)


def token(text: str, logprob: float, top: dict[str, float], **fields: Any) -> TokenLogprobs:
    likeliest = [Logprob(text=other, logprob=value) for other, value in top.items()]
    return TokenLogprobs(chosen=Logprob(text=text, logprob=logprob), top=likeliest, **fields)


ECHOED: list[Event] = [
    Tokens(
        text="Once",
        token_ids=[1],
        num_tokens=1,
        is_prompt=True,
        logprobs=[token("On", 0.0, {}, is_first=True)],
    ),
    Tokens(text="", token_ids=[2], is_prompt=True, logprobs=[token("ce", -0.25, {"ce": -0.25})]),
    Tokens(text=" upon", token_ids=[3], logprobs=[token(" upon", -1.5, {" a": -0.5, " the": -1.0})]),
    DONE,
]


def test_choices_of_a_prompt_follow_each_other_and_each_prompt_counts_once() -> None:
    planned = plan_completion(prompt=["a", "b"], n=2, best_of=2, seed=5)
    assert [generate(planned, index).prompt for index in range(4)] == [
        TextPrompt(text=text) for text in ("a", "a", "b", "b")
    ]
    assert [generate(planned, index).sampling.seed for index in range(4)] == [5, 6, 5, 6]
    answer = completion_answer(planned, *(texts(text) for text in "wxyz"))
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate("wxyz"))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 8)


def test_echo_comes_first_with_the_prompts_own_probabilities() -> None:
    planned = plan_completion(echo=True, logprobs=2)
    assert generate(planned).echo
    # OpenAI's types have no null for the first token of a prompt; its API and vLLM do.
    choice = end(planned, ECHOED)["choices"][0]
    assert choice["text"] == "Once upon"
    assert choice["logprobs"] == {
        "tokens": ["On", "ce", " upon"],
        "token_logprobs": [None, -0.25, -1.5],
        "text_offset": [0, 2, 4],
        "top_logprobs": [None, {"ce": -0.25}, {" upon": -1.5, " a": -0.5, " the": -1.0}],
    }
    assert next(iter(choice["logprobs"]["top_logprobs"][2])) == " upon", "the chosen token comes first"


def test_a_stream_has_the_same_probabilities() -> None:
    events = chunks(plan_completion(echo=True, logprobs=2, stream=True), ECHOED)
    shown = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    whole = end(plan_completion(echo=True, logprobs=2), ECHOED)["choices"][0]["logprobs"]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [value for logprobs in shown for value in logprobs[name]] == whole[name]


def test_zero_tokens_are_allowed_with_echo() -> None:
    planned = plan_completion(echo=True, max_tokens=0)
    assert generate(planned).sampling.max_tokens == 0


def test_logprobs_of_zero_name_the_chosen_token_alone() -> None:
    planned = plan_completion(logprobs=0)
    assert generate(planned).sampling.logprobs == 0
    events = [Tokens(text="a", logprobs=[token("a", -0.5, {})]), DONE]
    assert end(planned, events)["choices"][0]["logprobs"]["top_logprobs"] == [{"a": -0.5}]


def test_a_structure_is_enforced_here_too() -> None:
    assert generate(plan_completion(response_format={"type": "json_object"})).structure == JsonObject()


def test_stop_reasons_token_ids_and_tiers_are_shown() -> None:
    done = Completed(stop_reason=7, usage=Usage(prompt_tokens=1, completion_tokens=1))
    fields: dict[str, Any] = {"return_token_ids": True, "service_tier": "auto"}
    body = end(plan_completion(**fields), [Tokens(text="a", token_ids=[4]), done])
    assert body["choices"][0]["stop_reason"] == 7
    assert body["choices"][0]["token_ids"] == [4]
    assert body["service_tier"] == "default"
    events = chunks(plan_completion(**fields, stream=True), [Tokens(text="a", token_ids=[4]), done])
    assert [event["choices"][0]["token_ids"] for event in events] == [[4], []]
    assert events[-1]["choices"][0]["stop_reason"] == 7
    assert all(event["service_tier"] == "default" for event in events)


@pytest.mark.parametrize("continuous", [False, True])
def test_usage_streams_at_the_end_or_with_every_chunk(continuous: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": continuous}
    planned = plan_completion(prompt=["a", "b"], stream=True, stream_options=options)
    events = chunks(planned, texts("x"), texts("y"))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4
    assert all((event["usage"] is not None) == continuous for event in events[:-1])
    Completion.model_validate(events[-1], strict=True)
    assert json.dumps(events).count('"finish_reason": "stop"') == 2
