"""Items of an input, what they become as messages, and where their ids lead."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest
from sage_gateway.responses.bodies import InputItem
from sage_gateway.responses.conversation import Reference, chat_messages, input_items, shortened
from sage_gateway.responses.items import (
    FunctionCall,
    FunctionCallOutput,
    InputText,
    Item,
    ItemIds,
    Message,
    OutputText,
    ReasoningItem,
    ReasoningText,
    SummaryText,
    response_of,
)
from sage_wire.messages import ChatMessage, ToolCall


def user(text: str) -> Message:
    return Message("u", "user", [InputText(text)])


def said(text: str) -> Message:
    return Message("a", "assistant", [OutputText(text)])


def call(name: str) -> FunctionCall:
    return FunctionCall(f"fc_{name}", f"call_{name}", name, "{}")


def output(name: str, text: str = "ok") -> FunctionCallOutput:
    return FunctionCallOutput(f"fco_{name}", f"call_{name}", text)


def made(name: str) -> ToolCall:
    return ToolCall(id=f"call_{name}", name=name, arguments="{}")


def test_text_and_the_calls_after_it_are_one_turn() -> None:
    reasoning = ReasoningItem("r", [], [ReasoningText("hm"), ReasoningText("ah")])
    items: list[Item] = [
        user("Hi"),
        reasoning,
        said("Let me see"),
        call("a"),
        call("b"),
        output("a"),
        output("b"),
    ]
    assert chat_messages(None, items) == [
        ChatMessage(role="user", content="Hi"),
        ChatMessage(
            role="assistant", content="Let me see", tool_calls=[made("a"), made("b")], reasoning="hm\nah"
        ),
        ChatMessage(role="tool", content="ok", name="a", tool_call_id="call_a"),
        ChatMessage(role="tool", content="ok", name="b", tool_call_id="call_b"),
    ]


def test_two_texts_of_the_assistant_are_two_turns() -> None:
    messages = chat_messages("Be kind", [said("one"), said("two"), user("and?")])
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be kind"),
        ("assistant", "one"),
        ("assistant", "two"),
        ("user", "and?"),
    ]


def test_a_summary_is_read_where_there_is_no_reasoning_itself() -> None:
    items: list[Item] = [ReasoningItem("r", [SummaryText("short")]), said("yes")]
    assert chat_messages(None, items)[0].reasoning == "short"


def test_reasoning_that_nothing_follows_is_left_out() -> None:
    items: list[Item] = [
        user("Hi"),
        ReasoningItem("r", [], [ReasoningText("hm")]),
        user("still there?"),
        said("yes"),
    ]
    assert [message.reasoning for message in chat_messages(None, items)] == [None, None, None]


def test_the_output_of_a_call_that_nobody_made_is_refused() -> None:
    with pytest.raises(BadRequest, match="call_a"):
        chat_messages(None, [user("Hi"), output("a"), call("a")])


def test_a_text_is_one_message_of_the_user() -> None:
    (item,) = input_items("Hi", ItemIds("resp_abc", "i"))
    assert item == Message("msg_abci0", "user", [InputText("Hi")])


def test_what_has_an_id_keeps_it_and_a_bare_id_is_a_reference() -> None:
    given_items = msgspec.convert(
        [
            {"role": "user", "content": "Hi", "id": "mine"},
            {"role": "assistant", "content": "Yes"},
            {"id": "msg_1"},
        ],
        list[InputItem],
    )
    first, second, third = input_items(given_items, ItemIds("resp_abc", "i"))
    assert isinstance(first, Message)
    assert isinstance(second, Message)
    assert (first.id, second.id, second.content) == ("mine", "msg_abci0", [OutputText("Yes")])
    assert isinstance(third, Reference)
    assert third.item_id == "msg_1"


@settings(deadline=None)
@given(st.text(alphabet="abio019", min_size=1), st.sampled_from(["i", "o"]), st.integers(0, 300))
def test_an_item_leads_to_its_response(body: str, side: str, number: int) -> None:
    ids = ItemIds(f"resp_{body}", side)  # type: ignore[arg-type]
    for _ in range(number):
        ids.next("msg")
    assert response_of(ids.next("fc")) == f"resp_{body}"


@pytest.mark.parametrize("item_id", ["", "msg", "msg_", "msg_abc", "msg_12", "msg_o1", "msg_abcx1"])
def test_other_ids_lead_nowhere(item_id: str) -> None:
    assert response_of(item_id) is None


ITEMS = st.lists(
    st.sampled_from(
        [user("x"), said("y"), call("a"), output("a"), ReasoningItem("r", [], [ReasoningText("z")])]
    ),
    max_size=12,
)


@settings(deadline=None)
@given(ITEMS)
def test_no_text_and_no_call_is_lost_and_every_tool_turn_follows_its_call(items: list[Item]) -> None:
    calls = [index for index, item in enumerate(items) if isinstance(item, FunctionCall)]
    outputs = [index for index, item in enumerate(items) if isinstance(item, FunctionCallOutput)]
    if outputs and (not calls or outputs[0] < calls[0]):
        with pytest.raises(BadRequest):
            chat_messages(None, items)
        return
    messages = chat_messages(None, items)
    assert sum(len(message.tool_calls) for message in messages) == len(calls)
    texts = [message.content for message in messages if message.content in ("x", "y")]
    assert texts == ["x" if item == user("x") else "y" for item in items if isinstance(item, Message)]
    known: set[str] = set()
    for message in messages:
        known |= {made_call.id for made_call in message.tool_calls}
        assert message.role != "tool" or message.tool_call_id in known
        assert message.role == "assistant" or not message.reasoning


@settings(deadline=None)
@given(ITEMS)
def test_a_conversation_shortens_to_its_end_and_stays_one(items: list[Item]) -> None:
    calls = {item.call_id for item in items if isinstance(item, FunctionCall)}
    items = [item for item in items if not isinstance(item, FunctionCallOutput) or item.call_id in calls]
    first_call = next((i for i, item in enumerate(items) if isinstance(item, FunctionCall)), 0)
    items = [
        item for i, item in enumerate(items) if i > first_call or not isinstance(item, FunctionCallOutput)
    ]
    kept: list[Item] | None = items
    while kept is not None:
        chat_messages(None, kept)
        assert kept[-1:] == items[-1:]
        shorter = shortened(kept)
        assert shorter is None or len(shorter) < len(kept)
        kept = shorter


def test_what_the_end_answers_is_kept_with_it() -> None:
    items: list[Item] = [user("x"), said("y"), call("a"), call("b"), output("b"), output("a")]
    assert shortened(items) == [said("y"), *items[2:]]
    assert shortened(items[1:]) == items[2:]
    assert shortened(items[2:]) is None
