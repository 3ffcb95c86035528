"""The spans of a worker: ended before the consumer hears, stages that add up, text only on request."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sage_core import Budget, EngineError
from sage_telemetry import Telemetry, start_span
from sage_wire.messages import Completed, Embed, Generate, Span, TextPrompt, Tokens, Usage, Work
from sage_worker import Assigned
from sage_worker.perform_trace import PerformTrace
from span_recording import SAMPLED, TRACE_ID, recording

TEXT = "my grandmother's recipe"
GENERATE = Generate(model="p", prompt=TextPrompt(text=TEXT))


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    with recording() as made:
        yield made


def assigned(work: Work = GENERATE) -> Assigned:
    return Assigned(
        request_id="r", attempt=2, pool="p", work=work, tenant="me", priority=0, budget=Budget.of(5),
        traceparent=SAMPLED, queue_ms=1.5,
    )  # fmt: skip


def spans(telemetry: Telemetry) -> dict[str, Span]:
    return {span.name: span for span in telemetry.recent.find(TRACE_ID)}


def test_completed_ends_the_work_and_its_stages_which_fill_it(telemetry: Telemetry) -> None:
    trace = PerformTrace(assigned(), "w1")
    trace.note(Tokens(text="a"))
    trace.note(Tokens(text="b"))
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    trace.complete(Completed(finish_reason="length", usage=usage))
    found = spans(telemetry)
    work, prefill, decode = found["perform"], found["prefill"], found["decode"]
    assert (work.kind, work.parent_id) == ("consumer", SAMPLED[36:52])
    assert prefill.parent_id == decode.parent_id == work.span_id
    assert work.start_ns <= prefill.start_ns <= prefill.end_ns == decode.start_ns
    assert decode.end_ns == work.end_ns
    expected = {
        "sage.request.id": "r",
        "sage.request.attempt": 2,
        "sage.queue_ms": 1.5,
        "messaging.message.id": "r/2",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.response.finish_reasons": "length",
    }
    assert expected.items() <= work.attributes.items()
    trace.fail(EngineError("too late"))
    assert not spans(telemetry)["perform"].is_error
    assert len(telemetry.recent) == 3


def test_a_failure_before_the_first_token_was_in_prefill(telemetry: Telemetry) -> None:
    trace = PerformTrace(assigned(), "w1")
    trace.fail(EngineError("broken"))
    found = spans(telemetry)
    assert set(found) == {"perform", "prefill"}
    assert found["perform"].is_error
    assert found["perform"].attributes["error.type"] == "engine_error"


def test_work_that_generates_nothing_has_no_stages(telemetry: Telemetry) -> None:
    PerformTrace(assigned(Embed(model="p", texts=["a"])), "w1").complete(Completed())
    assert set(spans(telemetry)) == {"perform"}


@pytest.mark.parametrize("record_content", [False, True])
def test_text_is_recorded_only_where_it_is_asked_for(record_content: bool) -> None:
    with recording(record_content=record_content) as telemetry:
        trace = PerformTrace(assigned(), "w1")
        for piece in ("an ", "answer"):
            trace.note(Tokens(text=piece))
        trace.complete(Completed())
        attributes = spans(telemetry)["perform"].attributes
    if record_content:
        assert TEXT in str(attributes["gen_ai.input.messages"])
        (message,) = json.loads(str(attributes["gen_ai.output.messages"]))
        assert message["parts"] == [{"type": "text", "content": "an answer"}]
    else:
        assert TEXT not in repr(attributes)
        assert "an answer" not in repr(attributes)


def test_what_is_asked_for_while_working_hangs_under_the_work(telemetry: Telemetry) -> None:
    trace = PerformTrace(assigned(), "w1")
    with trace.span, start_span("inner"):
        pass
    found = spans(telemetry)
    assert found["inner"].parent_id == found["perform"].span_id
