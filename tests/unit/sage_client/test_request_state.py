"""One request at its consumer: exact text and one end, whatever is lost, repeated or late."""

from __future__ import annotations

import msgspec
import pytest

from request_driver import WORK, Driver
from sage_client.request_events import (
    Answered,
    Finish,
    ReaderCancelled,
    Refused,
    Resynchronised,
    SchedulerGone,
    SendCancel,
    SendSubmit,
    Timer,
    WorkerGone,
    WorkerListed,
)
from sage_client.request_state import Phase, RetryRules
from sage_core import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    EngineError,
    NotFound,
    Overloaded,
    Unavailable,
    WorkerLost,
)
from sage_wire.messages import (
    Annotated,
    Completed,
    Embed,
    Failed,
    Generate,
    Output,
    RunPipeline,
    Split,
    Started,
    Tokens,
    Vectors,
    WireError,
)


def test_events_in_order_are_handed_on_and_the_end_comes_once() -> None:
    driver = Driver()
    driver.start()
    driver.delta(1, Tokens(text="a"))
    driver.delta(2, Tokens(text="b"))
    driver.delta(3, Completed())
    assert driver.text == "ab"
    assert driver.finished == [Finish(None)]
    assert driver.state.worker_id == "w1"
    assert driver.state.queue_ms == 2.0


def test_started_may_overtake_the_schedulers_answer() -> None:
    driver = Driver()
    driver.delta(0, Started(worker_id="w1", model="m"))
    driver.feed(Answered(0, "scheduler-1"))
    driver.feed(Refused(0, Unavailable("the answer was late")))
    driver.delta(1, Completed())
    assert driver.finished == [Finish(None)]
    assert len(driver.submits) == 1


def test_a_gap_resumes_after_exactly_what_was_delivered() -> None:
    driver = Driver()
    driver.start()
    driver.delta(1, Tokens(text="a", token_ids=[1]))
    driver.delta(3, Tokens(text="c", token_ids=[3]))
    assert driver.cancels == [SendCancel(0, "w1", driver.cancels[0].reason)]
    work = driver.submits[1].work
    assert isinstance(work, Generate)
    assert work.resume is not None
    assert (work.resume.text, work.resume.token_ids, work.resume.num_tokens) == ("a", [1], 1)
    driver.delta(4, Tokens(text="d"), attempt=0)
    driver.start("w2")
    driver.delta(1, Tokens(text="bcd"))
    driver.delta(2, Completed())
    assert driver.text == "abcd"


def test_a_late_frame_that_fits_the_new_attempts_sequence_is_still_late() -> None:
    driver = Driver()
    driver.start()
    driver.delta(1, Tokens(text="a"))
    driver.feed(WorkerGone("w1", is_lost=True))
    driver.start("w2")
    driver.delta(1, Tokens(text="LATE"), attempt=0)
    driver.delta(1, Tokens(text="b"))
    driver.delta(2, Completed(), attempt=0)
    assert driver.text == "ab"
    assert not driver.finished


def test_a_repeated_frame_is_dropped_without_another_attempt() -> None:
    driver = Driver()
    driver.start()
    for _ in range(2):
        driver.delta(1, Tokens(text="a"))
    assert driver.text == "a"
    assert len(driver.submits) == 1


def test_token_ids_are_given_back_only_where_they_stand_for_all_of_the_text() -> None:
    driver = Driver()
    driver.start()
    driver.delta(1, Tokens(text="a", token_ids=[1]))
    driver.delta(2, Tokens(text="b"))
    driver.feed(WorkerGone("w1", is_lost=True))
    work = driver.submits[1].work
    assert isinstance(work, Generate)
    assert work.resume is not None
    assert (work.resume.text, work.resume.token_ids, work.resume.num_tokens) == ("ab", [], 2)


def test_a_lost_worker_is_replaced_at_once_and_only_its_own_requests_notice() -> None:
    driver = Driver()
    driver.start("w1")
    driver.feed(WorkerGone("w2", is_lost=True))
    assert len(driver.submits) == 1
    driver.feed(WorkerGone("w1", is_lost=True))
    assert [submit.attempt for submit in driver.submits] == [0, 1]


def test_the_last_frames_of_a_stopped_worker_are_waited_for() -> None:
    driver = Driver()
    driver.start()
    driver.feed(WorkerGone("w1", is_lost=False))
    driver.delta(1, Tokens(text="a"))
    assert len(driver.submits) == 1
    driver.fire()
    assert [submit.attempt for submit in driver.submits] == [0, 1]


def test_a_silent_worker_is_asked_about_and_lost_when_it_does_not_list_the_request_twice() -> None:
    driver = Driver()
    driver.start()
    driver.fire()
    assert driver.probes == 1
    driver.feed(WorkerListed("w1", is_held=True))
    driver.fire()
    driver.feed(WorkerListed("w1", is_held=False))
    assert len(driver.submits) == 1
    driver.fire()
    driver.feed(WorkerListed("w1", is_held=False))
    assert driver.probes == 3
    assert [submit.attempt for submit in driver.submits] == [0, 1]


def test_a_worker_that_talks_is_not_asked_about() -> None:
    driver = Driver()
    driver.start()
    for seq in range(1, 10):
        driver.now += 0.5
        driver.delta(seq, Tokens(text="a"))
        assert driver.timer is not None
        if driver.now >= driver.timer:
            driver.feed(Timer())
    assert driver.probes == 0


def test_last_frames_that_come_after_the_first_unlisting_are_in_time() -> None:
    driver = Driver()
    driver.start()
    driver.fire()
    driver.feed(WorkerListed("w1", is_held=False))
    driver.delta(1, Tokens(text="a"))
    driver.fire()
    driver.fire()
    driver.feed(WorkerListed("w1", is_held=False))
    assert len(driver.submits) == 1


def test_where_nobody_knows_silence_is_a_loss_only_after_a_reconnect() -> None:
    quiet, doubtful = Driver(), Driver()
    for driver in (quiet, doubtful):
        driver.start()
    doubtful.feed(Resynchronised())
    for driver in (quiet, doubtful):
        driver.fire()
        driver.feed(WorkerListed("w1", is_held=None))
    assert len(quiet.submits) == 1
    assert len(doubtful.submits) == 2


def test_a_schedulers_death_resubmits_what_had_not_started_and_only_that() -> None:
    waiting, running = Driver(), Driver()
    waiting.feed(Answered(0, "scheduler-1"))
    running.start()
    for driver in (waiting, running):
        driver.feed(SchedulerGone("scheduler-2"))
        driver.feed(SchedulerGone("scheduler-1"))
    waiting.fire()
    assert [submit.attempt for submit in waiting.submits] == [0, 1]
    assert len(running.submits) == 1


def test_a_submit_without_a_word_is_sent_again_as_it_was_and_given_up_after_as_long_again() -> None:
    driver = Driver()
    driver.fire()
    assert driver.now == RetryRules().answer
    assert driver.submits == [SendSubmit(0, WORK), SendSubmit(0, WORK)]
    assert driver.cancels == []
    driver.fire()
    assert (driver.state.attempt, driver.state.phase) == (1, Phase.BACKOFF)
    assert driver.cancels == [SendCancel(0, None, driver.cancels[0].reason)]
    driver.fire()
    assert driver.submits[2:] == [SendSubmit(1, WORK)]


def test_a_lost_answer_costs_a_repetition_and_nothing_else() -> None:
    driver = Driver()
    driver.fire()
    driver.start()
    driver.delta(1, Completed())
    assert driver.finished == [Finish(None)]
    assert [submit.attempt for submit in driver.submits] == [0, 0]


def test_an_answer_ends_the_wait_for_it_and_may_come_twice() -> None:
    driver = Driver(budget=50.0)
    driver.feed(Answered(0, "scheduler-1"))
    driver.feed(Answered(0, "scheduler-1"))
    assert driver.timer == 50.0, "nothing but the budget is waited for"
    driver.feed(SchedulerGone("scheduler-1"))
    driver.fire()
    driver.feed(Answered(0, "scheduler-1"))
    assert driver.state.phase is Phase.SUBMITTED, "that was the answer to the attempt before"


def test_an_answer_after_the_start_says_who_holds_it_and_a_late_refusal_nothing() -> None:
    driver = Driver()
    driver.delta(0, Started(worker_id="w1", model="m"))
    driver.feed(Answered(0, "scheduler-1"))
    driver.feed(Refused(0, Overloaded("late")))
    driver.feed(SchedulerGone("scheduler-1"))
    assert driver.state.phase is Phase.STARTED
    assert len(driver.submits) == 1


def test_a_started_attempt_is_not_submitted_again() -> None:
    driver = Driver()
    driver.delta(0, Started(worker_id="w1", model="m"))
    while driver.now < 5.0:
        driver.delta(driver.state._next_seq, Tokens(text="a"))
        driver.fire()
    assert len(driver.submits) == 1


def test_a_scheduler_killed_between_submit_and_dispatch_is_waited_for() -> None:
    driver = Driver()
    driver.fire()
    driver.feed(Refused(0, Unavailable("no scheduler serves it")))
    while driver.now < 3.0:
        driver.fire()
        driver.feed(Refused(driver.state.attempt, Unavailable("no scheduler serves it")))
    driver.fire()
    driver.start()
    driver.delta(1, Completed())
    assert driver.finished == [Finish(None)]


def test_what_was_submitted_into_a_gap_of_the_bus_becomes_another_attempt() -> None:
    driver = Driver()
    driver.feed(Resynchronised())
    assert driver.cancels == [SendCancel(0, None, driver.cancels[0].reason)]
    driver.fire()
    assert [submit.attempt for submit in driver.submits] == [0, 1]


def test_an_attempt_that_two_workers_run_is_begun_anew_and_stopped_at_both() -> None:
    driver = Driver()
    driver.delta(0, Started(worker_id="w1", model="m"))
    driver.delta(1, Tokens(text="a"))
    driver.delta(0, Started(worker_id="w1", model="m"))
    assert len(driver.submits) == 1
    driver.delta(0, Started(worker_id="w2", model="m"))
    assert {cancel.worker_id for cancel in driver.cancels} == {"w1", "w2"}
    assert [submit.attempt for submit in driver.submits] == [0, 1]
    driver.delta(1, Tokens(text="other"), attempt=0)
    assert driver.text == "a"


def test_a_restarting_scheduler_is_waited_for_up_to_the_patience() -> None:
    driver = Driver()
    while not driver.finished:
        driver.feed(Refused(driver.state.attempt, Unavailable("nobody listens")))
        if not driver.finished:
            driver.fire()
    assert RetryRules().patience <= driver.now < RetryRules().patience + 2.0
    assert isinstance(driver.finished[0].error, Unavailable)
    assert len(driver.submits) > 5


def test_the_patience_begins_anew_with_every_start() -> None:
    driver = Driver()
    driver.feed(Refused(0, Unavailable("nobody listens")))
    driver.fire()
    driver.delta(0, Started(worker_id="w1", model="m"))
    driver.delta(1, Tokens(text="a"))
    driver.now += 60.0
    driver.feed(WorkerGone("w1", is_lost=True))
    driver.feed(Refused(driver.state.attempt, Unavailable("nobody listens")))
    assert not driver.finished
    driver.fire()
    assert driver.submits[-1].attempt == driver.state.attempt == 3


def test_overload_is_the_callers_to_handle() -> None:
    driver = Driver()
    driver.feed(Refused(0, Overloaded("queue is full", retry_after=3.0)))
    error = driver.finished[0].error
    assert isinstance(error, Overloaded)
    assert error.retry_after == 3.0
    shed = Driver()
    shed.delta(
        0,
        Failed(error=WireError(code="overloaded", message="shed", retryable=True, retry_after=2.0)),
    )
    assert isinstance(shed.finished[0].error, Overloaded)


def test_overload_after_part_of_the_answer_waits_as_long_as_it_is_told() -> None:
    driver = Driver()
    driver.start()
    driver.delta(1, Tokens(text="a"))
    driver.feed(WorkerGone("w1", is_lost=True))
    driver.feed(Refused(1, Overloaded("queue is full", retry_after=3.0)))
    assert not driver.finished
    driver.fire()
    assert driver.now >= 3.0
    assert driver.submits[-1].attempt == 2


@pytest.mark.parametrize("error", [NotFound("no pool"), BadRequest("bad")])
def test_an_error_that_no_attempt_can_cure_ends_the_request(error: NotFound | BadRequest) -> None:
    driver = Driver()
    driver.feed(Refused(0, error))
    assert driver.finished == [Finish(error)]


def test_a_young_scheduler_that_has_not_heard_of_the_pool_is_asked_again() -> None:
    driver = Driver()
    driver.feed(Refused(0, Unavailable("nobody listens")))
    driver.fire()
    driver.feed(Refused(1, NotFound("nothing serves it; served now: none yet")))
    assert not driver.finished
    driver.fire()
    driver.start()
    driver.delta(1, Completed())
    assert driver.finished == [Finish(None)]


def test_a_pool_that_stays_unknown_is_not_found_after_the_patience() -> None:
    driver = Driver()
    driver.feed(Refused(0, Unavailable("nobody listens")))
    while not driver.finished:
        driver.fire()
        driver.feed(Refused(driver.state.attempt, NotFound("nothing serves it")))
    assert isinstance(driver.finished[0].error, NotFound)
    assert driver.now < RetryRules().patience + 2.0


def test_max_attempts_bounds_how_often_workers_may_fail() -> None:
    driver = Driver()
    for worker in ("w1", "w2", "w3"):
        driver.start(worker)
        driver.feed(WorkerGone(worker, is_lost=True))
        if driver.state.phase is Phase.BACKOFF:
            driver.fire()
    assert len(driver.submits) == 3
    # It may be what they died of. WorkerLost would be repeated, by clients, planners and jobs.
    error = driver.finished[0].error
    assert isinstance(error, EngineError)
    assert not error.retryable
    assert "3 workers in a row" in error.message


def test_a_request_whose_workers_were_not_all_lost_may_be_repeated_by_its_caller() -> None:
    driver = Driver()
    for worker in ("w1", "w2"):
        driver.start(worker)
        driver.feed(WorkerGone(worker, is_lost=True))
        if driver.state.phase is Phase.BACKOFF:
            driver.fire()
    driver.start("w3")
    driver.delta(2, Tokens(text="after a gap"))
    assert len(driver.submits) == 3
    assert isinstance(driver.finished[0].error, WorkerLost)


def test_a_scheduler_may_fail_a_started_request_out_of_band() -> None:
    driver = Driver()
    driver.start()
    driver.delta(1, Tokens(text="a"))
    driver.fail(-1, "worker_lost", retryable=True)
    assert [submit.attempt for submit in driver.submits] == [0, 1]
    driver.delta(-1, Failed(error=WireError(code="worker_lost", message="late", retryable=True)), attempt=0)
    assert len(driver.submits) == 2


def test_a_scheduler_that_leads_the_pool_no_more_is_no_failure_of_the_request() -> None:
    driver = Driver()
    for attempt in range(5):
        driver.feed(Answered(attempt, "scheduler-1"))
        driver.fail(-1, "unavailable", retryable=True)
        driver.fire()
    assert [submit.attempt for submit in driver.submits] == list(range(6))
    driver.start()
    driver.fail(-1, "unavailable", retryable=True)
    assert len(driver.submits) == 6, "a worker has it: who leads the pool does not matter"
    driver.delta(1, Completed())
    assert driver.finished == [Finish(None)]


def test_the_budget_ends_every_phase_and_stops_whatever_runs() -> None:
    driver = Driver(budget=10.0)
    driver.start()
    driver.now = 10.0
    driver.feed(Timer())
    assert isinstance(driver.finished[0].error, DeadlineExceeded)
    assert driver.cancels[-1].worker_id == "w1"
    assert driver.cancels[-1].attempt is None


def test_a_cancel_reaches_scheduler_and_worker_once() -> None:
    driver = Driver()
    driver.start()
    driver.feed(ReaderCancelled("gone"))
    driver.feed(ReaderCancelled("gone"))
    assert driver.cancels == [SendCancel(None, "w1", "gone")]
    assert isinstance(driver.finished[0].error, Cancelled)


def test_an_attempt_that_was_given_up_frees_its_slot_when_it_starts_after_all() -> None:
    driver = Driver()
    driver.feed(Answered(0, "scheduler-1"))
    driver.feed(SchedulerGone("scheduler-1"))
    driver.delta(0, Started(worker_id="w9", model="m"), attempt=0)
    assert driver.cancels[-1] == SendCancel(0, "w9", driver.cancels[-1].reason)
    assert driver.state.worker_id is None


def test_vectors_are_delivered_once_whatever_the_batches_were() -> None:
    driver = Driver(Embed(model="m", texts=list("abcde")))
    rows = [bytes([row]) * 8 for row in range(5)]
    driver.start()
    driver.delta(1, Vectors(offset=0, dim=2, data=rows[0] + rows[1] + rows[2]))
    driver.feed(WorkerGone("w1", is_lost=True))
    driver.start("w2")
    driver.delta(1, Vectors(offset=0, dim=2, data=rows[0] + rows[1]))
    driver.delta(2, Vectors(offset=2, dim=2, data=rows[2] + rows[3]))
    driver.delta(3, Vectors(offset=4, dim=2, data=rows[4]))
    driver.delta(4, Completed())
    vectors = [event for event in driver.events if isinstance(event, Vectors)]
    assert b"".join(event.data for event in vectors) == b"".join(rows)
    assert [event.offset for event in vectors] == [0, 3, 4]


def test_values_of_an_operator_are_delivered_once() -> None:

    driver = Driver(Split(documents=[]))
    value = Output(value=msgspec.Raw(b"\x80"))
    driver.start()
    driver.delta(1, value)
    driver.feed(WorkerGone("w1", is_lost=True))
    driver.start("w2")
    driver.delta(1, value)
    driver.delta(2, Completed())
    assert [type(event) for event in driver.events] == [Output, Completed]


def test_a_pipeline_is_run_again_until_it_has_said_something() -> None:
    driver = Driver(RunPipeline(pipeline="rag"))
    driver.start()
    driver.delta(1, Annotated(stage="retrieve", stage_ms=1.0))
    driver.feed(WorkerGone("w1", is_lost=True))
    driver.start("w2")
    driver.delta(1, Annotated(stage="retrieve", stage_ms=2.0))
    driver.delta(2, Annotated(stage="answer", stage_ms=2.0))
    driver.delta(3, Tokens(text="a"))
    driver.feed(WorkerGone("w2", is_lost=True))
    stages = [event.stage for event in driver.events if isinstance(event, Annotated)]
    assert stages == ["retrieve", "answer"]
    assert isinstance(driver.finished[0].error, WorkerLost)
