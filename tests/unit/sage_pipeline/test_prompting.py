"""The prompt node: a fixed format that readers can rely on, and templates that evaluate nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_core import BadRequest
from sage_pipeline.nodes import PromptOptions
from sage_pipeline.prompting import render_prompt
from sage_pipeline.template import TemplateError, parse_template
from sage_pipeline.values import Answer, Hits, Messages, Value
from sage_wire.messages import ChatMessage, Hit


def asked(*turns: str) -> Messages:
    roles = [
        "system" if turn.startswith("!") else "assistant" if turn.startswith("<") else "user"
        for turn in turns
    ]
    return Messages(
        tuple(
            ChatMessage(role=role, content=turn.lstrip("!<")) for role, turn in zip(roles, turns, strict=True)
        )
    )


def hit(text: str, source: str = "a.txt", title: str | None = None) -> Hit:
    return Hit(source=source, position=0, text=text, score=1.0, title=title)


def test_the_format_is_instructions_numbered_context_question() -> None:
    context = Hits((hit("NATS is fast.", "nats.txt", "About NATS"), hit("Second.", "b.txt")))
    prompt = render_prompt(
        PromptOptions(instructions="Be brief."), {"question": asked("Why?"), "context": context}, {}
    )
    assert [(message.role, message.content) for message in prompt.messages] == [
        ("system", "Be brief."),
        ("user", "<context>\n[1] About NATS\nNATS is fast.\n\n[2] b.txt\nSecond.\n</context>"),
        ("user", "Why?"),
    ]
    assert prompt.sources == context.hits


PASSAGES = st.lists(
    st.text(max_size=40) | st.sampled_from(["", " ", "</context>", " <context>", "[9] x"])
).map("\n".join)


@given(st.lists(st.tuples(st.text(max_size=40), PASSAGES), max_size=6))
def test_blank_lines_end_blocks_whatever_documents_say(passages: list[tuple[str, str]]) -> None:
    hits = Hits(tuple(hit(text, source) for source, text in passages))
    prompt = render_prompt(PromptOptions(), {"question": asked("Why?"), "context": hits}, {})
    lines = prompt.messages[-2].content.split("\n")
    assert (lines[0], lines[-1]) == ("<context>", "</context>")
    body = lines[1:-1]
    assert not {"<context>", "</context>"} & {line.strip() for line in body}
    blocks = "\n".join(body).split("\n\n") if passages else []
    assert len(blocks) == len(prompt.sources)
    for number, block in enumerate(blocks, 1):
        assert block.startswith(f"[{number}] ")


def test_whole_passages_are_kept_while_they_fit_and_the_first_is_cut() -> None:
    context = Hits((hit("a" * 150), hit("b" * 150), hit("c")))
    question = asked("Why?")
    prompt = render_prompt(
        PromptOptions(max_context_chars=200), {"question": question, "context": context}, {}
    )
    assert prompt.sources == context.hits[:1]
    long = Hits((hit("a" * 5000),))
    prompt = render_prompt(PromptOptions(max_context_chars=200), {"question": question, "context": long}, {})
    assert len(prompt.messages[-2].content) == len("<context>\n\n</context>") + 200


def test_without_hits_the_context_is_empty_and_still_there() -> None:
    prompt = render_prompt(PromptOptions(), {"question": asked("Why?"), "context": Hits(())}, {})
    assert prompt.messages[-2].content == "<context>\n\n</context>"
    assert prompt.sources == ()


def test_without_a_context_port_there_is_no_context_and_no_system_message() -> None:
    prompt = render_prompt(PromptOptions(), {"question": asked("Why?")}, {})
    assert [message.content for message in prompt.messages] == ["Why?"]


def test_earlier_turns_and_the_clients_system_message_are_kept_where_asked_for() -> None:
    conversation = asked("!German, please.", "One?", "<Yes.", "Two?")
    prompt = render_prompt(PromptOptions(instructions="Be brief.", history=6), {"question": conversation}, {})
    assert [(message.role, message.content) for message in prompt.messages] == [
        ("system", "Be brief.\n\nGerman, please."),
        ("user", "One?"),
        ("assistant", "Yes."),
        ("user", "Two?"),
    ]
    assert len(render_prompt(PromptOptions(history=1), {"question": conversation}, {}).messages) == 3


def test_slots_take_the_question_extra_ports_and_parameters_and_are_filled_once() -> None:
    options = PromptOptions(instructions="Style: {{ style }}", template="{{question}} / {{draft}}")
    inputs: dict[str, Value] = {"question": asked("What is {{draft}}?"), "draft": Answer("{{style}} {x}")}
    prompt = render_prompt(options, inputs, {"style": "{{question}}"})
    assert [message.content for message in prompt.messages] == [
        "Style: {{question}}",
        "What is {{draft}}? / {{style}} {x}",
    ]


def test_a_conversation_without_a_question_is_the_callers_mistake() -> None:
    with pytest.raises(BadRequest, match="no message with role 'user'"):
        render_prompt(PromptOptions(), {"question": asked("!Only this.")}, {})


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("{{", 1, 1),
        ("a\nb {{ c", 2, 3),
        ("{{a.b}}", 1, 1),
        ("{{}}", 1, 1),
        ("x {{a[0]}}", 1, 3),
        ("{{a|upper}}", 1, 1),
    ],
)
def test_a_slot_that_is_not_a_name_is_refused_with_its_place(text: str, line: int, column: int) -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template(text)
    assert (caught.value.line, caught.value.column) == (line, column)


@given(st.text(st.characters(codec="utf-8", exclude_characters="{"), max_size=200))
def test_text_without_slots_is_itself(text: str) -> None:
    assert parse_template(text).render({}) == text
