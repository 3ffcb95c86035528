"""The events of a response, with OpenAI's own types as the oracle, and what they add up to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from sage_core import Internal
from sage_gateway.dialects.pieces import CallArguments, CallStarted, Content, Piece, Reasoning
from sage_gateway.errors import HttpError
from sage_gateway.responses.answer import ResponseAnswer
from sage_gateway.responses.bodies import CreateBody
from sage_gateway.responses.items import response_of
from sage_gateway.responses.resource import ResponseBody
from sage_wire.messages import (
    Annotated,
    Completed,
    Event,
    Hit,
    Logprob,
    Scores,
    Started,
    TokenLogprobs,
    Tokens,
    Usage,
)

RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
END = Completed(usage=Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=3))
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}


class Scripted:
    """A parser for which each text names the pieces it stands for."""

    def __init__(self, pieces: dict[str, list[Piece]], held: Sequence[Piece] = ()) -> None:
        self._pieces = pieces
        self._held = list(held)

    def push(self, text: str) -> list[Piece]:
        return self._pieces.get(text, [Content(text)] if text else [])

    def finish(self) -> list[Piece]:
        return self._held


def answer(
    *,
    is_streamed: bool = True,
    body: dict[str, Any] | None = None,
    pieces: dict[str, list[Piece]] | None = None,
) -> ResponseAnswer:
    asked = msgspec.convert({"model": "tiny", "input": "hi", **(body or {})}, CreateBody)
    response = ResponseBody.of(asked, response_id="resp_abc", created=100, model="tiny", is_stored=True)
    return ResponseAnswer(response, Scripted(pieces or {}), is_streamed=is_streamed, unix_time=lambda: 101)


def events_of(data: bytes) -> list[dict[str, Any]]:
    found = []
    for block in data.decode().split("\n\n"):
        if block and block != "data: [DONE]":
            name, _, value = block.partition("\n")
            event = json.loads(value.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            found.append(event)
    return found


def checked(data: bytes) -> list[dict[str, Any]]:
    """Return the events of a stream, each valid for OpenAI's types and numbered without a gap."""
    events = events_of(data)
    for event in events:
        EVENT.validate_python(event, strict=True)
        if "response" in event:
            RESPONSE.validate_python(event["response"], strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def run(made: ResponseAnswer, *events: Event) -> bytes:
    return made.add(0, list(events)) + made.end()


def kinds(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_is_told_in_the_order_that_clients_rely_on() -> None:
    data = run(answer(), Started(worker_id="w", model="tiny"), Tokens(text="Hel"), Tokens(text="lo"), END)
    assert data.endswith(b"\n\ndata: [DONE]\n\n")
    events = checked(data)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "Hello" == events[6]["text"]
    assert last["status"] == "completed"
    assert last["completed_at"] == 101
    assert last["usage"]["total_tokens"] == 12
    assert last["usage"]["input_tokens_details"]["cached_tokens"] == 3


def test_a_whole_answer_is_what_the_last_event_of_a_stream_shows() -> None:
    script = (Tokens(text="a"), Tokens(text="b"), END)
    whole = json.loads(run(answer(is_streamed=False), *script))
    assert whole == checked(run(answer(), *script))[-1]["response"]
    RESPONSE.validate_python(whole, strict=True)


def test_reasoning_text_and_calls_are_items_of_their_own() -> None:
    pieces: dict[str, list[Piece]] = {
        "think": [Reasoning("hm")],
        "call": [CallStarted(0, "call_1", "weather"), CallArguments(0, '{"city":')],
        "more": [CallArguments(0, '"Rome"}'), CallStarted(1, "call_2", "time")],
    }
    script = [Tokens(text=text) for text in ("think", "\n\n", "hello", "\n", "call", "more")]
    events = checked(run(answer(pieces=pieces), *script, END))
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert output[2]["arguments"] == '{"city":"Rome"}'
    assert (output[3]["call_id"], output[3]["name"], output[3]["arguments"]) == ("call_2", "time", "")
    assert [item["id"] for item in output] == ["rs_abco0", "msg_abco1", "fc_abco2", "fc_abco3"]
    assert {response_of(item["id"]) for item in output} == {"resp_abc"}
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [
        0,
        1,
        2,
        3,
    ]
    assert "response.reasoning_text.delta" in {event["type"] for event in events}
    assert events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"] == 1


def test_reasoning_stands_in_for_its_summary_where_one_is_asked_for() -> None:
    made = answer(body={"reasoning": {"summary": "auto"}}, pieces={"think": [Reasoning("hm")]})
    events = checked(run(made, Tokens(text="think"), Tokens(text="yes"), END))
    assert events[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert "reasoning_summary_text.delta" in kinds(events)
    assert "reasoning_text.delta" not in kinds(events)


def test_blank_text_around_calls_makes_no_message() -> None:
    pieces: dict[str, list[Piece]] = {"call": [CallStarted(0, "c", "f"), CallArguments(0, "{}")]}
    events = checked(
        run(answer(pieces=pieces), Tokens(text="\n"), Tokens(text="call"), Tokens(text="\n"), END)
    )
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["function_call"]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_answer_that_says_nothing_is_one_message(text: str) -> None:
    script = [Tokens(text=text), END] if text else [END]
    output = checked(run(answer(), *script))[-1]["response"]["output"]
    assert [item["content"][0]["text"] for item in output] == [text]


def test_an_answer_cut_by_its_limit_is_incomplete_with_its_last_item() -> None:
    events = checked(run(answer(), Tokens(text="He"), msgspec.structs.replace(END, finish_reason="length")))
    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["completed_at"] is None
    assert last["response"]["status"] == last["response"]["output"][0]["status"] == "incomplete"


def test_log_probabilities_go_with_their_text() -> None:
    entry = TokenLogprobs(
        chosen=Logprob(text="é", logprob=-0.5), top=[Logprob(text="?", logprob=-2.0, raw=b"\xff")]
    )
    events = checked(run(answer(), Tokens(text="é", logprobs=[entry]), Tokens(text="!"), END))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert deltas[0]["logprobs"][0]["bytes"] == [195, 169]
    assert deltas[0]["logprobs"][0]["top_logprobs"] == [{"token": "?", "logprob": -2.0, "bytes": [255]}]
    assert deltas[1]["logprobs"] == []
    part = events[-1]["response"]["output"][0]["content"][0]
    assert [entry["token"] for entry in part["logprobs"]] == ["é"]


def test_a_stream_that_fails_ends_with_an_error_and_no_done() -> None:
    made = answer()
    began = made.add(0, [Tokens(text="He")])
    error = HttpError(503, "server_error", "worker_lost", "the worker died")
    failed = made.stopped("failed", error)
    data = began + made.fail(failed, error)
    assert b"[DONE]" not in data
    events = checked(data)
    assert kinds(events)[-2:] == ["error", "failed"]
    assert events[-2]["error"]["message"] == events[-2]["message"] == "the worker died"
    shown = events[-1]["response"]
    assert shown["error"] == {"code": "server_error", "message": "the worker died"}
    assert shown["output"][0]["content"][0]["text"] == "He"
    assert shown["output"][0]["status"] == "incomplete"


def test_what_could_not_be_stored_says_so_at_the_end() -> None:
    made = answer()
    made.add(0, [Tokens(text="a"), END])
    made.is_stored = False
    assert checked_last(made.end())["response"]["store"] is False


def checked_last(data: bytes) -> dict[str, Any]:
    return events_of(data)[-1]


def test_what_a_pipeline_says_beside_its_text_is_an_extension() -> None:
    hit = Hit(source="a.md", position=0, text="t", score=0.5)
    events = checked(run(answer(), Annotated(sources=[hit], stage="r", stage_ms=2.0), Tokens(text="a"), END))
    assert events[-1]["response"]["sources"][0]["source"] == "a.md"
    assert events[-1]["response"]["sage"] == {"stages": {"r": 2.0}}


def test_an_event_of_other_work_is_an_internal_error() -> None:
    with pytest.raises(Internal):
        answer().add(0, [Scores(scores=[1.0])])


PIECES = st.lists(
    st.one_of(
        st.builds(Content, st.text(alphabet="ab \n", min_size=1, max_size=3)),
        st.builds(Reasoning, st.text(alphabet="xy", min_size=1, max_size=3)),
        st.integers(0, 3).map(lambda count: [CallStarted(0, "c", "f"), *[CallArguments(0, "1")] * count]),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(PIECES, st.sampled_from(["stop", "length"]), st.booleans())
def test_whatever_is_written_deltas_add_up_and_every_item_is_opened_and_closed_once(
    written: list[Any], reason: str, is_summary: bool
) -> None:
    script = {
        str(index): piece if isinstance(piece, list) else [piece] for index, piece in enumerate(written)
    }
    made = answer(body={"reasoning": {"summary": "auto"}} if is_summary else None, pieces=script)
    end = msgspec.structs.replace(END, finish_reason=reason)
    events = checked(run(made, *[Tokens(text=text) for text in script], end))
    output = events[-1]["response"]["output"]
    assert [event["item"]["id"] for event in of(events, "output_item.added")] == [
        item["id"] for item in output
    ]
    assert [event["item"] for event in of(events, "output_item.done")] == output
    for item in output:
        deltas = [
            event["delta"] for event in events if event.get("item_id") == item["id"] and "delta" in event
        ]
        assert "".join(deltas) == text_of(item)
    said = "".join(
        piece.text for pieces in script.values() for piece in pieces if not isinstance(piece, CallStarted)
    )
    assert without_blanks("".join(text_of(item) for item in output)) == without_blanks(said)
    assert len(of(events, "created")) == 1
    assert sum(event["type"] in TERMINAL for event in events) == 1


def of(events: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == f"response.{kind}"]


def without_blanks(text: str) -> str:
    return "".join(text.split())


def text_of(item: dict[str, Any]) -> str:
    match item["type"]:
        case "message":
            return "".join(part["text"] for part in item["content"])
        case "reasoning":
            return "".join(part["text"] for part in [*item["content"], *item["summary"]])
        case _:
            return str(item["arguments"])
