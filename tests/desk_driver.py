"""A scheduling desk driven by hand: what is said to it, and what it says, in short."""

from __future__ import annotations

from typing import Any

from sage_policy import (
    Command,
    Event,
    make_policy,
)
from sage_scheduler.desk import OUT_OF_BAND, SchedulingDesk
from sage_scheduler.outgoing import (
    Outgoing,
    SendAnswer,
    SendFailure,
)
from sage_wire import raw
from sage_wire.messages import (
    Announcement,
    Answer,
    Embed,
    Failed,
    Report,
    ReportEvent,
    ServedModel,
    Submit,
    WireError,
)

__all__ = [
    "FENCE",
    "MODEL",
    "Desk",
    "announce",
    "answers",
    "desk",
    "failures",
    "refusals",
    "report",
    "submit",
]

MODEL = "mini"
FENCE = 7


class Desk(SchedulingDesk):
    """A desk that keeps what its policy heard."""

    def __init__(self, max_queued: int, max_receipts: int) -> None:
        self.events: list[Event] = []
        policy = make_policy("least-outstanding+hold", max_queued=max_queued, seed=0)
        super().__init__(policy, scheduler_id="s1", max_receipts=max_receipts, record=self._keep)

    def _keep(self, event: Event, _now: float, _commands: list[Command]) -> None:
        self.events.append(event)

    def submit(self, *arguments: Any) -> list[Outgoing]:
        """As its consumer sees it: a refusal is an error, that it is held is no news."""
        outgoing = super().submit(*arguments)
        for error in refusals(outgoing):
            raise error.raised()
        return [item for item in outgoing if not isinstance(item, SendAnswer)]

    def heard(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def desk(max_queued: int = 8, max_receipts: int = 100, leads: tuple[str, ...] = (MODEL,)) -> Desk:
    made = Desk(max_queued, max_receipts)
    for pool in leads:
        made.lead(pool, FENCE, 0.0)
    return made


def announce(
    worker: str = "w1",
    limit: int = 1,
    in_flight: list[str] | None = None,
    models: list[str] | None = None,
    **more: Any,
) -> Announcement:
    return Announcement(
        actor_id=worker, kind="llm-worker", epoch="e", sequence=0, state="ready", version="0", host="h", pid=1,
        models=[ServedModel(name=name, task="generate") for name in models or [MODEL]],
        max_in_flight=limit, in_flight=in_flight or [], **more,
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


def answers(outgoing: list[Outgoing]) -> list[Answer]:
    return [item.answer for item in outgoing if isinstance(item, SendAnswer)]


def refusals(outgoing: list[Outgoing]) -> list[WireError]:
    return [answer.error for answer in answers(outgoing) if answer.error is not None]
