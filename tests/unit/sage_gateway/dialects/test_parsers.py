"""What every parser of raw text promises: pieces as written, whatever way the text is cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.dialects import (
    GUIDED,
    NAMED,
    CallArguments,
    CallStarted,
    Content,
    FirstCallParser,
    Parser,
    Piece,
    Reasoning,
    reasoning_parser,
    tool_parser,
)

NAMES = frozenset({"weather", "clock"})


def numbered() -> Callable[[], str]:
    ids = itertools.count()
    return lambda: f"id{next(ids)}"


def tools(format_: str, names: frozenset[str] = NAMES) -> Parser:
    return tool_parser(format_, names, numbered())


def parse(parser: Parser, *parts: str) -> list[Piece]:
    pieces: list[Piece] = []
    for part in parts:
        pieces += parser.push(part)
    return merged(pieces + parser.finish())


def called(index: int, name: str, arguments: str) -> list[Piece]:
    return [CallStarted(index, f"id{index}", name), CallArguments(index, arguments)]


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Return `pieces` with neighbours of one kind (and one call) joined."""
    found: list[Piece] = []
    parts: list[str] = []

    def close() -> None:
        if len(parts) > 1:
            found[-1] = msgspec.structs.replace(found[-1], text="".join(parts))
        parts.clear()

    for piece in pieces:
        if isinstance(piece, CallStarted):
            close()
            found.append(piece)
            continue
        if not parts or not _continues(found[-1], piece):
            close()
            found.append(piece)
        parts.append(piece.text)
    close()
    return found


def _continues(last: Piece, piece: Piece) -> bool:
    if isinstance(piece, CallArguments):
        return isinstance(last, CallArguments) and last.index == piece.index
    return type(last) is type(piece)


WEATHER = '{"name": "weather", "arguments": {"city": "Bern"}}'


@pytest.mark.parametrize(
    ("format_", "text", "expected"),
    [
        ("hermes", "Hello\n", [Content("Hello\n")]),
        (
            "hermes",
            f"Let me see.\n<tool_call>\n{WEATHER}\n</tool_call>",
            [Content("Let me see."), *called(0, "weather", '{"city": "Bern"}')],
        ),
        (
            "hermes",
            f"\n\n<tool_call>{WEATHER}</tool_call>\n<tool_call>"
            '{"arguments": {}, "name": "clock"}</tool_call>\n',
            [*called(0, "weather", '{"city": "Bern"}'), *called(1, "clock", "{}")],
        ),
        ("hermes", '<tool_call>{"name": "clock"}</tool_call>', called(0, "clock", "{}")),
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": "{\\"city\\": 1}"}</tool_call>done',
            [*called(0, "weather", '{"city": 1}'), Content("done")],
        ),
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": {"html": "</tool_call>}\\"{"}}}\n</tool_call>',
            called(0, "weather", '{"html": "</tool_call>}\\"{"}'),
        ),
        ("hermes", "<tool_call>\n<function=f>", [Content("<tool_call>\n<function=f>")]),
        ("hermes", "a < b <tool", [Content("a < b <tool")]),
        (
            "hermes",
            '<tool_call>{"nam": "weather"}</tool_call>',
            [Content('<tool_call>{"nam": "weather"}</tool_call>')],
        ),
        ("hermes", '<tool_call>{"name": "wea', [Content('<tool_call>{"name": "wea')]),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"c', called(0, "weather", '{"c')),
        (
            "mistral",
            f"[TOOL_CALLS] [{WEATHER}, {WEATHER}]",
            [*called(0, "weather", '{"city": "Bern"}'), *called(1, "weather", '{"city": "Bern"}')],
        ),
        (
            "mistral",
            'Sure. [TOOL_CALLS]weather{"city": "}"}[TOOL_CALLS]clock[CALL_ID]abc[ARGS]{}',
            [Content("Sure."), *called(0, "weather", '{"city": "}"}'), *called(1, "clock", "{}")],
        ),
        ("mistral", "[TOOL_CALLS] none of them {", [Content("[TOOL_CALLS] none of them {")]),
        ("mistral", "no [TOOL", [Content("no [TOOL")]),
        (
            "llama3_json",
            '<|python_tag|>{"name": "weather", "parameters": {"city": "Bern"}}; {"name": "clock", "parameters": {}}',
            [*called(0, "weather", '{"city": "Bern"}'), *called(1, "clock", "{}")],
        ),
        (
            "llama3_json",
            '{"parameters": {"city": 1}, "name": "weather"}',
            called(0, "weather", '{"city": 1}'),
        ),
        (
            "llama3_json",
            '{"name": "Ada", "parameters": {}} ok',
            [Content('{"name": "Ada", "parameters": {}} ok')],
        ),
        ("llama3_json", '{"name": "weather"}', [Content('{"name": "weather"}')]),
        ("llama3_json", "plain {", [Content("plain {")]),
        (
            "pythonic",
            "[weather(city='Bern', days=[1, 2]), clock()]",
            [*called(0, "weather", '{"city":"Bern","days":[1,2]}'), *called(1, "clock", "{}")],
        ),
        ("pythonic", "[1, 2]", [Content("[1, 2]")]),
        ("pythonic", r"[weather(city='\d')]", called(0, "weather", r'{"city":"\\d"}')),
        ("pythonic", "[weather(city=x)]", [Content("[weather(city=x)]")]),
        ("pythonic", "[weather(**x)]", [Content("[weather(**x)]")]),
        ("pythonic", "[other()]", [Content("[other()]")]),
        ("pythonic", "An answer.", [Content("An answer.")]),
        (
            GUIDED,
            ' [{"name": "weather", "parameters": {"city": "[]"}}, {"name": "clock", "parameters": {}}]',
            [*called(0, "weather", '{"city": "[]"}'), *called(1, "clock", "{}")],
        ),
        (GUIDED, ' {"answer": 1}', [Content(' {"answer": 1}')]),
        (GUIDED, "", []),
        ("", "<tool_call>{}</tool_call>", [Content("<tool_call>{}</tool_call>")]),
    ],
)
def test_calls_are_told_from_text(format_: str, text: str, expected: list[Piece]) -> None:
    assert parse(tools(format_), text) == expected


def test_a_named_call_takes_the_whole_text_as_its_arguments() -> None:
    one = frozenset({"clock"})
    assert parse(tools(NAMED, one), " ", '{"a":', "1}") == called(0, "clock", '{"a":1}')
    assert parse(tools(NAMED, one)) == [CallStarted(0, "id0", "clock")]


def test_arguments_stream_while_they_are_written() -> None:
    parser = tools("hermes")
    assert parser.push('<tool_call>{"name": "weather", "arguments": {"ci') == called(0, "weather", '{"ci')
    assert parser.push('ty": "B') == [CallArguments(0, 'ty": "B')]
    assert parser.push('"}') == [CallArguments(0, '"}')]
    assert parser.push("}</tool") == []
    assert parser.push("_call>") == []


def test_text_streams_at_once_but_for_what_may_be_a_marker() -> None:
    parser = tools("hermes")
    assert parser.push("Hello") == [Content("Hello")]
    assert parser.push(" <b>") == [Content(" <b>")]
    assert parser.push(" <tool_") == []
    assert parser.push("box>") == [Content(" <tool_box>")]


def test_calls_after_the_first_are_dropped_where_one_is_allowed() -> None:
    text = f"<tool_call>{WEATHER}</tool_call><tool_call>{WEATHER}</tool_call>"
    assert parse(FirstCallParser(tools("hermes")), text) == called(0, "weather", '{"city": "Bern"}')


@pytest.mark.parametrize(
    ("format_", "text", "expected"),
    [
        ("think", "<think>\nWhy?\n</think>\n\nSo.", [Reasoning("Why?"), Content("So.")]),
        ("think", " <think></think>So.", [Content("So.")]),
        ("think", "So. <think>no</think>", [Content("So. <think>no</think>")]),
        ("think", "<thin", [Content("<thin")]),
        ("think", "<think>cut </thi", [Reasoning("cut </thi")]),
        ("think_open", "Why?\n</think>So.", [Reasoning("Why?"), Content("So.")]),
        ("think_open", "<think>Why?</think>So.", [Reasoning("Why?"), Content("So.")]),
        ("think_open", "cut short\n", [Reasoning("cut short")]),
        ("think_open", "<th", [Reasoning("<th")]),
        ("", "<think>x</think>", [Content("<think>x</think>")]),
        (
            "think",
            f"<think>Which?</think>\n<tool_call>{WEATHER}</tool_call>",
            [Reasoning("Which?"), *called(0, "weather", '{"city": "Bern"}')],
        ),
    ],
)
def test_reasoning_is_told_from_the_answer(format_: str, text: str, expected: list[Piece]) -> None:
    assert parse(reasoning_parser(format_, tools("hermes"), is_open=True), text) == expected


def test_a_prompt_that_opens_no_reasoning_is_answered_at_once() -> None:
    parser = reasoning_parser("think_open", tools(""), is_open=False)
    assert parser.push("So.") == [Content("So.")]


FRAGMENTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>",
        '{"name": "weather", "arguments": {"a": "}"}}', '{"name": "clock", "parameters": {}}', '"name"', '"arguments"',
        '"weather"', "weather", "weather(a=1)", "{", "}", "[", "]", ":", ",", ";", '"', "\\", " ", "\n", "1", "null",
        "x", "<", "é", " " * 300, '{"name": "weather", "arguments": "{\\"a\\": 1}"}',
    ]
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=14).map("".join)
FORMATS = st.sampled_from(["hermes", "mistral", "llama3_json", "pythonic", GUIDED, NAMED, ""])


@given(TEXTS, FORMATS, st.sampled_from(["", "think", "think_open"]), st.data())
def test_pieces_do_not_depend_on_how_the_text_is_cut(
    text: str, format_: str, reasoning: str, data: st.DataObject
) -> None:
    def parser() -> Parser:
        names = frozenset({"weather"}) if format_ == NAMED else NAMES
        return reasoning_parser(reasoning, tools(format_, names), is_open=True)

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    parts = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    whole = parse(parser(), text)
    assert parse(parser(), *parts) == whole
    assert parse(parser(), *text) == whole


@given(TEXTS, FORMATS)
def test_every_call_starts_once_and_before_its_arguments(text: str, format_: str) -> None:
    names = frozenset({"weather"}) if format_ == NAMED else NAMES
    started: list[int] = []
    for piece in parse(tools(format_, names), *text):
        match piece:
            case CallStarted(index=index):
                assert index == len(started)
                started.append(index)
            case CallArguments(index=index, text=part):
                assert index == started[-1]
                assert part
            case Content(text=part):
                assert part


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), min_size=1, max_size=3))
def test_arguments_come_out_as_they_went_in(calls: list[dict[str, object]]) -> None:
    texts = [json.dumps(call) for call in calls]
    written = "".join(
        f'<tool_call>\n{{"name": "clock", "arguments": {text}}}\n</tool_call>' for text in texts
    )
    expected = [piece for index, text in enumerate(texts) for piece in called(index, "clock", text)]
    assert parse(tools("hermes"), *written) == expected
    listed = ", ".join(f'{{"name": "clock", "arguments": {text}}}' for text in texts)
    assert parse(tools("mistral"), *f"[TOOL_CALLS][{listed}]") == expected
