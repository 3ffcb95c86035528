"""Turns of a conversation: every role and kind of content reaches the wire, and what is wrong is named."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from operation_driver import generate, plan_chat
from sage_core import BadRequest, LimitExceeded
from sage_wire.messages import ChatMessage, ChatPrompt, Image, ToolCall

PNG = b"\x89PNG\r\n\x1a\n rest"
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def turns(*messages: dict[str, Any], model: str = "plain") -> list[ChatMessage]:
    prompt = generate(plan_chat(model, messages=list(messages))).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


def image(url: Any = URL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def test_calls_and_their_answers_are_turns() -> None:
    assert turns(
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": [text("a"), text("b")]},
    ) == [
        ChatMessage(
            role="assistant", content="", tool_calls=[ToolCall(id="c1", name="f", arguments='{"a":1}')]
        ),
        ChatMessage(role="tool", content="a\nb", name="f", tool_call_id="c1"),
    ]


def test_functions_answer_the_latest_call_of_their_name() -> None:
    call = {"name": "f", "arguments": "{}"}
    first, answer, second, other = turns(
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "2"},
    )
    assert (answer.role, answer.tool_call_id) == ("tool", first.tool_calls[0].id)
    assert other.tool_call_id == second.tool_calls[0].id != first.tool_calls[0].id


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_of_an_earlier_turn_is_kept_apart(field: str) -> None:
    assert turns({"role": "assistant", "content": "a", field: "why"}) == [
        ChatMessage(role="assistant", content="a", reasoning="why")
    ]


def test_a_refusal_is_what_the_assistant_said() -> None:
    assert turns(
        {"role": "assistant", "refusal": "no"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
    ) == [ChatMessage(role="assistant", content="no"), ChatMessage(role="assistant", content="never")]


def test_images_stand_where_they_stood() -> None:
    (turn,) = turns(
        {"role": "user", "content": [image({"url": URL, "detail": "low"}), text("ab"), image(), text("c")]},
        model="seer",
    )
    assert turn.content == "ab\nc"
    assert turn.images == [
        Image(media_type="image/png", data=PNG, position=0),
        Image(media_type="image/png", data=PNG, position=2),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "file:///etc/passwd",
        "data:image/png,abc",
        "data:image/png;base64,@@@",
        "data:image/svg+xml;base64,AAAA",
        "data:image/jpeg;base64," + base64.b64encode(PNG).decode(),
    ],
)
def test_what_is_no_image_in_the_message_itself_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        turns({"role": "user", "content": [image({"url": url})]}, model="seer")
    assert caught.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("size", [b"", b"A" * 100_000])
def test_no_prefix_of_a_url_is_fetched_or_shown(size: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        turns({"role": "user", "content": [image("http://internal/" + size.decode())]}, model="seer")
    assert "internal" not in str(caught.value)


def test_images_are_counted_over_all_messages() -> None:
    messages = [{"role": "user", "content": [image()]} for _ in range(17)]
    with pytest.raises(LimitExceeded) as caught:
        turns(*messages, model="seer")
    assert caught.value.param == "messages[16].content[0].image_url"


def test_many_small_parts_are_joined_in_linear_time() -> None:
    (turn,) = turns({"role": "user", "content": [text("x")] * 50_000})
    assert len(turn.content) == 99_999


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c1"}], "messages[0].tool_call_id"),
        ([{"role": "user", "content": [image()]}], "messages[0].content[0].image_url"),
        ([{"role": "assistant", "content": [image()]}], "messages[0].content[0].image_url"),
        ([{"role": "assistant", "audio": {"id": "a"}}], "messages[0].audio"),
        (
            [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}],
            "messages[0].tool_calls[0].type",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "assistant", "tool_calls": [CALL] * 129}], "messages[0].tool_calls"),
        ([{"role": "user", "content": "x"}] * 4097, "messages"),
    ],
)
def test_a_wrong_turn_is_named(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises((BadRequest, LimitExceeded)) as caught:
        turns(*messages)
    assert caught.value.param == param
