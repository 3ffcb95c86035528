"""Promises of the scheduling desk: what leaves the scheduler for each thing that reaches it."""

from __future__ import annotations

import msgspec
import pytest

from sage_core import Cancelled, DeadlineExceeded, NotFound, Overloaded
from sage_scheduler.desk import (
    CANCEL_MEMORY,
    OUT_OF_BAND,
    ArmTimer,
    Outgoing,
    SchedulingDesk,
    SendCancel,
    SendDispatch,
    SendFailure,
)
from sage_scheduler.settings import SchedulerSection
from sage_wire import raw
from sage_wire.messages import (
    Announcement,
    Cancel,
    Embed,
    Failed,
    Report,
    ReportEvent,
    ServedModel,
    Submit,
)

MODEL = "mini"


def desk(max_queued: int = 8, max_receipts: int = 100) -> SchedulingDesk:
    return SchedulingDesk(SchedulerSection(max_queued=max_queued, max_receipts=max_receipts))


def announce(
    worker: str = "w1", limit: int = 1, in_flight: list[str] | None = None, models: list[str] | None = None
) -> Announcement:
    return Announcement(
        actor_id=worker, kind="embedding-worker", epoch="e", sequence=0, state="ready", version="0", host="h", pid=1,
        models=[ServedModel(name=name, task="embed") for name in models or [MODEL]],
        max_in_flight=limit, in_flight=in_flight or [],
    )  # fmt: skip


def submit(request_id: str = "r", attempt: int = 0, pool: str = MODEL) -> Submit:
    return Submit(
        request_id=request_id,
        attempt=attempt,
        pool=pool,
        reply_to="sage.v1.frames.c",
        work=raw(Embed(model=pool, texts=["x"])),
    )


def report(request_id: str = "r", event: ReportEvent = ReportEvent.FINISHED, attempt: int = 0) -> Report:
    return Report(worker_id="w1", pool=MODEL, request_id=request_id, attempt=attempt, event=event)


def failures(outgoing: list[Outgoing]) -> list[tuple[str, str, bool]]:
    found = []
    for item in outgoing:
        if isinstance(item, SendFailure):
            assert isinstance(item.delta.event, Failed)
            assert item.delta.seq == OUT_OF_BAND
            found.append(
                (item.delta.request_id, item.delta.event.error.code, item.delta.event.error.retryable)
            )
    return found


def test_a_submit_for_a_free_worker_is_dispatched_with_its_work_unread() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    request = msgspec.structs.replace(submit(), work=msgspec.Raw(b"\xc1 not even MessagePack"))
    sent = scheduling.submit(request, 10.0, "00-aa-bb-01", 0.0)
    (dispatch,) = [item for item in sent if isinstance(item, SendDispatch)]
    assert dispatch.worker_id == "w1"
    assert bytes(dispatch.dispatch.work) == bytes(request.work)
    assert (dispatch.deadline, dispatch.traceparent) == (10.0, "00-aa-bb-01")


def test_an_unknown_pool_is_refused_with_the_names_of_those_served() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(models=["a", "b"]), 0.0)
    with pytest.raises(NotFound, match=r"nothing serves 'c'; served now: a, b"):
        scheduling.submit(submit(pool="c"), 10.0, None, 0.0)


def test_a_full_queue_refuses_the_submit_itself() -> None:
    scheduling = desk(max_queued=1)
    scheduling.worker_up(announce(limit=0), 0.0)
    scheduling.submit(submit("a"), 10.0, None, 0.0)
    with pytest.raises(Overloaded) as caught:
        scheduling.submit(submit("b"), 10.0, None, 0.0)
    assert caught.value.retry_after is not None
    assert scheduling.num_held == 1


def test_a_spent_budget_refuses_the_submit_itself() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    with pytest.raises(DeadlineExceeded):
        scheduling.submit(submit(), 0.0, None, 0.0)


def test_work_that_expires_in_the_queue_fails_at_its_consumer() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(limit=0), 0.0)
    assert scheduling.submit(submit(), 5.0, None, 0.0) == [ArmTimer(MODEL, 5.0)]
    assert failures(scheduling.timer(MODEL, 5.0)) == [("r", "deadline_exceeded", False)]
    assert scheduling.num_held == 0


def test_a_lost_worker_fails_its_requests_as_retryable() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    scheduling.submit(submit(), 10.0, None, 0.0)
    assert failures(scheduling.worker_down("w1", 1.0, is_lost=True)) == [("r", "worker_lost", True)]
    assert scheduling.num_held == 0


def test_a_pool_outlives_its_workers_and_holds_work_for_the_next() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    scheduling.worker_down("w1", 1.0, is_lost=True)
    scheduling.submit(submit(), 10.0, None, 1.0)
    sent = scheduling.worker_up(announce("w2"), 2.0)
    assert [item.worker_id for item in sent if isinstance(item, SendDispatch)] == ["w2"]


def test_a_finished_report_frees_the_slot_for_the_next_request() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    scheduling.submit(submit("a"), 10.0, None, 0.0)
    scheduling.submit(submit("b"), 10.0, None, 0.0)
    sent = scheduling.report(report("a"), 1.0)
    assert [item.dispatch.request_id for item in sent if isinstance(item, SendDispatch)] == ["b"]


def test_cancel_reaches_queued_work_as_a_failure_and_running_work_as_a_cancel() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    scheduling.submit(submit("run"), 10.0, None, 0.0)
    scheduling.submit(submit("wait"), 10.0, None, 0.0)
    assert failures(scheduling.cancel(Cancel(request_id="wait"), 1.0)) == [("wait", "cancelled", False)]
    sent = scheduling.cancel(Cancel(request_id="run"), 1.0)
    (cancel,) = [item for item in sent if isinstance(item, SendCancel)]
    assert (cancel.worker_id, cancel.cancel.request_id) == ("w1", "run")


def test_a_cancel_that_overtakes_its_submit_is_remembered_for_a_while() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(), 0.0)
    scheduling.cancel(Cancel(request_id="r"), 0.0)
    with pytest.raises(Cancelled):
        scheduling.submit(submit(), 10.0, None, 1.0)
    later = CANCEL_MEMORY + 1.0
    assert any(isinstance(item, SendDispatch) for item in scheduling.submit(submit(), 20.0, None, later))


def test_work_of_class_batch_ranks_below_all_other_here_and_at_its_worker() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(limit=0), 0.0)
    scheduling.submit(msgspec.structs.replace(submit("batch"), slo_class="batch"), 10.0, None, 0.0)
    scheduling.submit(submit("urgent"), 10.0, None, 0.0)
    sent = [item for item in scheduling.worker_up(announce(limit=4), 0.0) if isinstance(item, SendDispatch)]
    assert [(item.dispatch.request_id, item.dispatch.priority) for item in sent] == [
        ("urgent", 0),
        ("batch", -1),
    ]


def test_the_same_submit_twice_is_dispatched_once() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(limit=4), 0.0)
    scheduling.submit(submit(), 10.0, None, 0.0)
    assert scheduling.submit(submit(), 10.0, None, 0.0) == []


def test_a_new_scheduler_counts_what_workers_say_they_run() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(limit=1, in_flight=["old/0"]), 0.0)
    assert not any(isinstance(i, SendDispatch) for i in scheduling.submit(submit(), 10.0, None, 0.0))
    sent = scheduling.report(report("old"), 1.0)
    assert [item.dispatch.request_id for item in sent if isinstance(item, SendDispatch)] == ["r"]


def test_receipts_say_who_was_considered_and_are_bounded() -> None:
    scheduling = desk(max_receipts=2)
    scheduling.worker_up(announce(limit=9), 0.0)
    for request_id in ("a", "b", "c"):
        scheduling.submit(submit(request_id), 10.0, None, 0.0)
    assert scheduling.receipt("a") is None
    scheduling.report(report("c"), 0.5)
    receipt = scheduling.receipt("c")
    assert receipt is not None
    assert (receipt.decision, receipt.chosen, receipt.actual_ms) == ("dispatched", "w1", 500.0)
    assert [candidate.instance_id for candidate in receipt.candidates] == ["w1"]


def test_a_model_dropped_from_an_announcement_gets_no_more_work() -> None:
    scheduling = desk()
    scheduling.worker_up(announce(models=[MODEL, "other"]), 0.0)
    scheduling.worker_up(announce(models=["other"]), 1.0)
    assert not any(isinstance(i, SendDispatch) for i in scheduling.submit(submit(), 10.0, None, 1.0))
