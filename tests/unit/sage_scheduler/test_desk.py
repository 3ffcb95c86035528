"""Promises of the scheduling desk: what leaves the scheduler for each thing that reaches it."""

from __future__ import annotations

import msgspec
import pytest

from desk_driver import FENCE, MODEL, announce, answers, desk, failures, report, submit
from sage_core import Cancelled, DeadlineExceeded, Overloaded, Unavailable
from sage_policy import (
    Finished,
    FirstToken,
    InstanceUp,
    PoolClosed,
    Progressed,
    Submitted,
    Telemetry,
)
from sage_scheduler.desk import SchedulingDesk
from sage_scheduler.held import CANCEL_MEMORY
from sage_scheduler.outgoing import (
    ArmTimer,
    Outgoing,
    SendAnswer,
    SendCancel,
    SendDispatch,
    SendLead,
)
from sage_wire.messages import (
    Answer,
    Cancel,
    DecisionFacts,
    EngineProfile,
    ReceiptTimes,
    ReportEvent,
    ServedModel,
    Targets,
    WorkSize,
)
from sage_wire.messages import Telemetry as WireTelemetry


def test_a_submit_for_a_free_worker_is_dispatched_with_its_work_unread() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    request = msgspec.structs.replace(
        submit(), work=msgspec.Raw(b"\xc1 not even MessagePack"), traceparent="00-aa-bb-01"
    )
    sent = scheduling.submit(request, 10.0, 0.0)
    (dispatch,) = [item for item in sent if isinstance(item, SendDispatch)]
    assert dispatch.worker_id == "w1"
    assert bytes(dispatch.dispatch.work) == bytes(request.work)
    assert (dispatch.dispatch.budget_ms, dispatch.dispatch.traceparent) == (10_000, "00-aa-bb-01")


def test_only_what_is_not_dispatched_at_once_is_answered() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=1), 0.0)
    assert answers(SchedulingDesk.submit(scheduling, submit("now"), 10.0, 0.0)) == []
    held = SchedulingDesk.submit(scheduling, submit("later"), 10.0, 0.0)
    assert answers(held) == [Answer(request_id="later", attempt=0, scheduler_id="s1")]
    assert [item.reply_to for item in held if isinstance(item, SendAnswer)] == ["sage.v1.frames.c"]
    assert dispatches(scheduling.report(report("now"), 2.0))[0].dispatch.budget_ms == 8000


def test_a_submit_that_is_repeated_is_answered_whatever_became_of_it() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=1), 0.0)
    for request_id in ("runs", "waits"):
        SchedulingDesk.submit(scheduling, submit(request_id), 10.0, 0.0)
        (again,) = SchedulingDesk.submit(scheduling, submit(request_id), 10.0, 0.0)
        assert isinstance(again, SendAnswer)
        assert again.answer == Answer(request_id=request_id, attempt=0, scheduler_id="s1")


def test_an_end_that_nothing_came_before_implies_the_rest() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=8), 0.0)
    for request_id, num_tokens in (("one", 1), ("many", 7)):
        scheduling.submit(submit(request_id), 10.0, 0.0)
        ended = msgspec.structs.replace(report(request_id), num_tokens=num_tokens, num_cached=64)
        scheduling.report(ended, 0.5)
    first = FirstToken("one/0", 64)
    assert scheduling.heard(FirstToken) == [first], "when the first of many came is not known"
    assert scheduling.heard(Finished) == [Finished("one/0", 1), Finished("many/0", 7)]
    receipt = scheduling.receipt("one")
    assert receipt is not None
    assert receipt.actual is not None
    assert receipt.actual.ttft_ms == 500.0


def test_a_pool_that_is_not_led_here_is_refused_so_that_its_leader_is_asked() -> None:
    scheduling = desk(leads=())
    scheduling.worker_heard(announce(), 0.0)
    with pytest.raises(Unavailable, match="scheduler s1 does not lead the pool 'mini'"):
        scheduling.submit(submit(), 10.0, 0.0)
    assert scheduling.events == [], "the policy hears nothing of pools that are led elsewhere"


def test_a_full_queue_refuses_the_submit_itself() -> None:
    scheduling = desk(max_queued=1)
    scheduling.worker_heard(announce(limit=0), 0.0)
    scheduling.submit(submit("a"), 10.0, 0.0)
    with pytest.raises(Overloaded) as caught:
        scheduling.submit(submit("b"), 10.0, 0.0)
    assert caught.value.retry_after is not None
    assert scheduling.num_held == 1


def test_a_spent_budget_refuses_the_submit_itself() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    with pytest.raises(DeadlineExceeded):
        scheduling.submit(submit(), 0.0, 0.0)


def test_work_that_expires_in_the_queue_fails_at_its_consumer() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=0), 0.0)
    assert scheduling.submit(submit(), 5.0, 0.0) == [ArmTimer(5.0)]
    assert failures(scheduling.timer(5.0)) == [("r", "deadline_exceeded", False)]
    assert scheduling.num_held == 0


def test_a_lost_worker_fails_its_requests_as_retryable() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    scheduling.submit(submit(), 10.0, 0.0)
    assert failures(scheduling.worker_down("w1", 1.0, is_lost=True)) == [("r", "worker_lost", True)]
    assert scheduling.num_held == 0


def test_a_pool_outlives_its_workers_and_holds_work_for_the_next() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    scheduling.worker_down("w1", 1.0, is_lost=True)
    scheduling.submit(submit(), 10.0, 1.0)
    sent = scheduling.worker_heard(announce("w2"), 2.0)
    assert [item.worker_id for item in sent if isinstance(item, SendDispatch)] == ["w2"]


def test_a_finished_report_frees_the_slot_for_the_next_request() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    scheduling.submit(submit("a"), 10.0, 0.0)
    scheduling.submit(submit("b"), 10.0, 0.0)
    sent = scheduling.report(report("a"), 1.0)
    assert [item.dispatch.request_id for item in sent if isinstance(item, SendDispatch)] == ["b"]


def test_cancel_reaches_queued_work_as_a_failure_and_running_work_as_a_cancel() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    scheduling.submit(submit("run"), 10.0, 0.0)
    scheduling.submit(submit("wait"), 10.0, 0.0)
    assert failures(scheduling.cancel(Cancel(request_id="wait"), 1.0)) == [("wait", "cancelled", False)]
    sent = scheduling.cancel(Cancel(request_id="run"), 1.0)
    (cancel,) = [item for item in sent if isinstance(item, SendCancel)]
    assert (cancel.worker_id, cancel.cancel.request_id) == ("w1", "run")


def test_a_cancel_that_overtakes_its_submit_is_remembered_for_a_while() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    scheduling.cancel(Cancel(request_id="r"), 0.0)
    with pytest.raises(Cancelled):
        scheduling.submit(submit(), 10.0, 1.0)
    later = CANCEL_MEMORY + 1.0
    assert any(isinstance(item, SendDispatch) for item in scheduling.submit(submit(), 20.0, later))


def test_work_of_class_batch_ranks_below_all_other_here_and_at_its_worker() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=0), 0.0)
    scheduling.submit(msgspec.structs.replace(submit("batch"), slo_class="batch"), 10.0, 0.0)
    scheduling.submit(submit("urgent"), 10.0, 0.0)
    sent = [
        item for item in scheduling.worker_heard(announce(limit=4), 0.0) if isinstance(item, SendDispatch)
    ]
    assert [(item.dispatch.request_id, item.dispatch.priority) for item in sent] == [
        ("urgent", 0),
        ("batch", -1),
    ]


def test_the_same_submit_twice_is_dispatched_once() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=4), 0.0)
    scheduling.submit(submit(), 10.0, 0.0)
    assert scheduling.submit(submit(), 10.0, 0.0) == []


def test_a_new_scheduler_counts_what_workers_say_they_run() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=1, in_flight=["old/0"]), 0.0)
    assert not any(isinstance(i, SendDispatch) for i in scheduling.submit(submit(), 10.0, 0.0))
    sent = scheduling.report(report("old"), 1.0)
    assert [item.dispatch.request_id for item in sent if isinstance(item, SendDispatch)] == ["r"]


def test_receipts_say_who_was_considered_and_are_bounded() -> None:
    scheduling = desk(max_receipts=2)
    scheduling.worker_heard(announce(limit=9), 0.0)
    for request_id in ("a", "b", "c"):
        scheduling.submit(submit(request_id), 10.0, 0.0)
    assert scheduling.receipt("a") is None
    scheduling.report(report("c"), 0.5)
    receipt = scheduling.receipt("c")
    assert receipt is not None
    assert (receipt.decision, receipt.chosen, receipt.actual_ms) == ("dispatched", "w1", 500.0)
    assert [candidate.instance_id for candidate in receipt.candidates] == ["w1"]


def test_a_model_dropped_from_an_announcement_gets_no_more_work() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(models=[MODEL, "other"]), 0.0)
    scheduling.worker_heard(announce(models=["other"]), 1.0)
    assert not any(isinstance(i, SendDispatch) for i in scheduling.submit(submit(), 10.0, 1.0))


def dispatches(outgoing: list[Outgoing]) -> list[SendDispatch]:
    return [item for item in outgoing if isinstance(item, SendDispatch)]


def test_a_pool_is_led_with_what_its_workers_already_run() -> None:
    scheduling = desk(leads=())
    scheduling.worker_heard(announce(limit=2, in_flight=["old/0"]), 0.0)
    sent = scheduling.lead(MODEL, FENCE, 1.0)
    assert [(item.worker_id, item.lead.fence) for item in sent if isinstance(item, SendLead)] == [
        ("w1", FENCE)
    ]
    (up,) = scheduling.heard(InstanceUp)
    assert isinstance(up, InstanceUp)
    assert up.instance.in_flight == ("old/0",)
    (sent_dispatch,) = dispatches(scheduling.submit(submit(), 10.0, 1.0))
    assert sent_dispatch.dispatch.fence == FENCE


def test_a_worker_is_told_who_leads_before_it_is_given_anything() -> None:
    scheduling = desk()
    sent = scheduling.worker_heard(announce(), 0.0)
    assert isinstance(sent[0], SendLead)
    again = scheduling.worker_heard(announce(limit=2), 1.0)
    assert not [item for item in again if isinstance(item, SendLead)]


def test_a_pool_that_is_lost_sends_back_what_no_worker_has_confirmed() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=2), 0.0)
    for request_id in ("started", "on-its-way", "waits"):
        scheduling.submit(submit(request_id), 10.0, 0.0)
    scheduling.report(report("started", ReportEvent.STARTED), 0.1)
    sent = scheduling.lose(MODEL, 1.0)
    assert failures(sent) == [("on-its-way", "unavailable", True), ("waits", "unavailable", True)]
    assert scheduling.num_held == 0
    assert scheduling.events[-1] == PoolClosed(MODEL)
    assert scheduling.report(report("started"), 2.0) == [], "the next leader hears of what runs"
    assert not dispatches(scheduling.worker_heard(announce(limit=9), 2.0))


def test_a_pool_that_comes_back_begins_from_what_workers_say() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=1), 0.0)
    scheduling.submit(submit("first"), 10.0, 0.0)
    scheduling.lose(MODEL, 1.0)
    scheduling.worker_heard(announce(limit=1, in_flight=["first/0"]), 1.5)
    scheduling.lead(MODEL, FENCE + 1, 2.0)
    assert not dispatches(scheduling.submit(submit("second"), 10.0, 2.0)), "the slot is taken"
    (item,) = dispatches(scheduling.report(report("first"), 3.0))
    assert (item.dispatch.request_id, item.dispatch.fence) == ("second", FENCE + 1)


def test_what_an_earlier_leader_dispatched_frees_its_slot_when_it_is_listed_no_more() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=1, in_flight=["old/0"]), 0.0)
    scheduling.submit(submit(), 10.0, 0.0)
    (item,) = dispatches(scheduling.worker_heard(announce(limit=1), 1.0))
    assert item.dispatch.request_id == "r"
    assert scheduling.heard(Finished) == [Finished("old/0")]


def test_a_dispatch_that_its_worker_never_lists_fails_as_lost() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    scheduling.submit(submit(), 60.0, 0.0)
    sent: list[Outgoing] = []
    for second in range(1, 8):
        sent += scheduling.worker_heard(announce(), float(second))
    assert failures(sent) == [("r", "worker_lost", True)]


def test_an_idle_worker_that_says_the_same_again_is_no_news() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    num_events = len(scheduling.events)
    scheduling.worker_heard(announce(), 1.0)
    assert len(scheduling.events) == num_events


def test_load_and_progress_reach_the_policy() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=2), 0.0)
    scheduling.submit(submit(), 60.0, 0.0)
    load = WireTelemetry(pool=MODEL, num_running=3, num_waiting=1, kv_used=0.5)
    said = announce(limit=2, in_flight=["r/0", "old/1"], num_tokens=[17, 4], telemetry=[load])
    for second in (1.0, 2.0):
        scheduling.worker_heard(said, second)
    assert scheduling.heard(Telemetry)[0] == Telemetry("w1", MODEL, 3, 1, 0.5)
    assert scheduling.heard(Progressed) == [Progressed("r/0", 17)], "each count once, and only of our own"


def test_a_draining_worker_keeps_what_it_runs_and_gets_nothing_more() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=4), 0.0)
    scheduling.submit(submit("a"), 60.0, 0.0)
    assert scheduling.worker_draining("w1", 1.0) == []
    assert not dispatches(scheduling.submit(submit("b"), 60.0, 1.0))
    scheduling.lose(MODEL, 2.0)
    assert scheduling.lead(MODEL, FENCE + 1, 3.0) == [], "who drains is no instance of the pool"


def test_targets_size_and_clock_reach_the_policy_in_seconds() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(), 0.0)
    size = WorkSize(num_items=2, num_chars=400, max_tokens=9, num_prompt_tokens=100, blocks=[5, 6])
    targets = Targets(ttft_ms=500.0, tpot_ms=50.0, started_ago_ms=250.0, downstream_ms=1500.0)
    request = msgspec.structs.replace(submit(), size=size, targets=targets, route="/v1/x", slo_class="normal")
    (item,) = dispatches(scheduling.submit(request, 10.0, 0.0))
    (event,) = scheduling.heard(Submitted)
    assert isinstance(event, Submitted)
    assert (event.ttft_slo, event.tpot_slo, event.e2e_slo) == (0.5, 0.05, None)
    assert (event.started_ago, event.downstream_seconds) == (0.25, 1.5)
    assert (event.num_prompt_tokens, event.blocks, event.route) == (100, (5, 6), "/v1/x")
    assert (item.dispatch.targets, item.dispatch.slo_class) == (targets, "normal")


def test_the_clock_of_the_targets_goes_on_while_a_request_waits() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=0), 0.0)
    request = msgspec.structs.replace(submit(), targets=Targets(e2e_ms=900.0, started_ago_ms=100.0))
    scheduling.submit(request, 10.0, 0.0)
    (item,) = dispatches(scheduling.worker_heard(announce(limit=1), 0.5))
    assert item.dispatch.targets == Targets(e2e_ms=900.0, started_ago_ms=600.0)


def test_no_estimate_keeps_a_prompt_from_the_engine_that_can_count_it() -> None:
    scheduling = desk()
    model = ServedModel(name=MODEL, task="generate", profile=EngineProfile(max_context=1000, kv_tokens=4000))
    scheduling.worker_heard(msgspec.structs.replace(announce(), models=[model]), 0.0)
    request = msgspec.structs.replace(submit(), size=WorkSize(num_prompt_tokens=5000))
    assert dispatches(scheduling.submit(request, 10.0, 0.0)), "the engine says what is too long"


def test_documents_of_an_operator_are_not_counted_as_a_prompt() -> None:
    scheduling = desk(leads=("operator/index",))
    model = ServedModel(name="operator/index", task="operator", device="cpu")
    scheduling.worker_heard(msgspec.structs.replace(announce(limit=4), models=[model]), 0.0)
    big = WorkSize(num_chars=10**7, num_prompt_tokens=10**6)
    for request_id in ("a", "b", "c"):
        request = msgspec.structs.replace(submit(request_id, pool="operator/index"), size=big)
        assert dispatches(scheduling.submit(request, 10.0, 0.0))


def test_members_of_a_batch_are_told_how_many_they_are() -> None:
    scheduling = desk()
    model = ServedModel(
        name=MODEL, task="embed", is_batched=True, profile=EngineProfile(max_step_tokens=8192)
    )
    busy = msgspec.structs.replace(announce(limit=8), models=[model])
    scheduling.worker_heard(busy, 0.0)
    scheduling.submit(submit("first"), 60.0, 0.0)
    for request_id in ("a", "b", "c"):
        scheduling.submit(submit(request_id), 60.0, 0.0)
    sent = dispatches(scheduling.report(report("first"), 1.0))
    assert sorted(item.dispatch.request_id for item in sent) == ["a", "b", "c"]
    assert {item.dispatch.batch_size for item in sent} == {3}
    assert len({item.dispatch.batch for item in sent}) == 1
    receipt = scheduling.receipt("a")
    assert receipt is not None
    assert receipt.facts is not None
    assert (receipt.facts.batch, receipt.facts.batch_size) == (sent[0].dispatch.batch, 3)


def test_receipts_say_what_was_predicted_and_what_came() -> None:
    scheduling = desk()
    profile = EngineProfile(a0=0.02, m0=0.02, m1=1e-4, max_sequences=8, kv_tokens=10**6, max_context=10**5)
    model = ServedModel(name=MODEL, task="generate", profile=profile)
    scheduling.worker_heard(msgspec.structs.replace(announce(limit=8), models=[model]), 0.0)
    scheduling.submit(msgspec.structs.replace(submit(), size=WorkSize(num_prompt_tokens=1000)), 60.0, 0.0)
    scheduling.report(report(event=ReportEvent.STARTED), 0.1)
    first = msgspec.structs.replace(report(event=ReportEvent.FIRST_TOKEN), num_tokens=1, num_cached=128)
    scheduling.report(first, 0.5)
    scheduling.report(msgspec.structs.replace(report(), num_tokens=11, num_cached=128), 1.5)
    receipt = scheduling.receipt("r")
    assert receipt is not None
    assert receipt.predicted is not None
    assert receipt.predicted.ttft_ms is not None
    assert receipt.predicted.ttft_ms > 0
    assert receipt.actual == ReceiptTimes(ttft_ms=500.0, tpot_ms=100.0, num_tokens=11, num_cached=128)
    assert receipt.actual_ms == 1500.0
    assert receipt.facts == DecisionFacts(scheduler_id="s1", fence=FENCE)


def test_a_request_that_waits_has_a_receipt_that_says_so() -> None:
    scheduling = desk()
    scheduling.worker_heard(announce(limit=0), 0.0)
    scheduling.submit(submit(), 10.0, 0.0)
    receipt = scheduling.receipt("r")
    assert receipt is not None
    assert (receipt.decision, receipt.num_queued) == ("held", 1)


def test_a_refusal_keeps_its_code_and_its_time_to_retry() -> None:
    scheduling = desk(max_queued=1)
    scheduling.worker_heard(announce(limit=0), 0.0)
    scheduling.submit(submit("a"), 10.0, 0.0)
    with pytest.raises(Overloaded) as caught:
        scheduling.submit(submit("b"), 10.0, 0.0)
    receipt = scheduling.receipt("b")
    assert receipt is not None
    assert receipt.facts is not None
    assert (receipt.decision, receipt.facts.code) == ("shed", "overloaded")
    assert receipt.facts.retry_after == caught.value.retry_after
