"""Every subject with what is sent and answered on it: the table behind proto/asyncapi.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sage_wire import subjects
from sage_wire.messages import (
    Announcement,
    Cancel,
    CancelledRequest,
    CancelledResponse,
    CancelRequest,
    CancelResponse,
    Discover,
    Dispatches,
    Drain,
    Draining,
    FindReceipt,
    FindSpans,
    FoundSpans,
    Frame,
    JobState,
    Lead,
    Message,
    Ping,
    Pong,
    Receipt,
    Reports,
    SubmitJob,
    Submits,
)

__all__ = ["CHANNELS", "PARAMETERS", "Channel"]


@dataclass(frozen=True, slots=True)
class Channel:
    """A subject. `address` has parameters in braces. `reply` is None where nothing is answered."""

    name: str
    address: str
    message: type[Message]
    sender: str
    receiver: str
    description: str
    reply: type[Message] | None = None


PARAMETERS: Final = {
    "pool": "base32(sha256(pool name)), lower case, first 16 characters. A pool name is a model, "
    "operator/<type> or pipeline/<name>.",
    "worker": "A worker's actor id.",
    "consumer": "An id that the consumer made up; it subscribes here and names the subject as reply_to.",
    "actor": "An actor id.",
    "kind": "An actor's kind, e.g. llm-worker.",
    "job": "A job id.",
}

_W: Final = "{worker}"
_A: Final = "{actor}"

CHANNELS: Final = (
    Channel(
        "submit",
        subjects.ALL_SUBMITS.replace("*", "{pool}"),
        Submits,
        "consumer",
        "scheduler",
        "Ask for work. Answers and results come as frames on each submit's reply_to; what is dispatched at once is "
        "not answered. Published with a reply subject of the consumer's own, on which NATS says 503 (no responders) "
        "while no scheduler leads the pool, and nobody else anything.",
    ),
    Channel(
        "cancelAtScheduler",
        subjects.ALL_CANCELS.replace("*", "{pool}"),
        Cancel,
        "consumer",
        "scheduler",
        "Stop a request wherever it is.",
    ),
    Channel(
        "report",
        subjects.ALL_REPORTS.replace("*", "{pool}"),
        Reports,
        "worker",
        "scheduler",
        "What became of dispatches. A report that a later one in the message implies is left out.",
    ),
    Channel(
        "dispatch",
        subjects.worker_dispatch(_W),
        Dispatches,
        "scheduler",
        "worker",
        "Start requests.",
    ),
    Channel(
        "cancelAtWorker",
        subjects.worker_cancel(_W),
        Cancel,
        "scheduler or consumer",
        "worker",
        "Stop a request, in any phase; one that is still to come is stopped on arrival.",
    ),
    Channel(
        "lead",
        subjects.worker_lead(_W),
        Lead,
        "scheduler",
        "worker",
        "Who leads a pool of the worker now; dispatches of earlier leaders are refused from then on.",
    ),
    Channel(
        "frames",
        subjects.frames("{consumer}"),
        Frame,
        "worker or scheduler",
        "consumer",
        "Results of all requests of one consumer, and schedulers' answers to its submits. A scheduler sends Failed "
        "with seq -1, out of band.",
    ),
    Channel("ping", subjects.actor(_A, "ping"), Ping, "anybody", "actor", "Is its event loop alive?", Pong),
    Channel(
        "drain",
        subjects.actor(_A, "drain"),
        Drain,
        "operator",
        "actor",
        "Finish or hand over what is held, then exit.",
        Draining,
    ),
    Channel(
        "discover",
        subjects.every("discover"),
        Discover,
        "anybody",
        "every actor",
        "Ask for announcements now; they come where announcements come.",
    ),
    Channel(
        "findSpans",
        subjects.every("find_spans"),
        FindSpans,
        "anybody",
        "every actor",
        "Recent spans of a trace; each actor answers for itself.",
        FoundSpans,
    ),
    Channel(
        "announce",
        subjects.announce("{kind}", _A),
        Announcement,
        "actor",
        "anybody",
        "Presence: on every change and once per interval.",
    ),
    Channel(
        "findReceipt",
        subjects.RECEIPTS_FIND,
        FindReceipt,
        "anybody",
        "every scheduler",
        "Why a request went where it went.",
        Receipt,
    ),
    Channel(
        "cancelRequest",
        subjects.REQUESTS_CANCEL,
        CancelRequest,
        "gateway",
        "every gateway",
        "End a request by the id that its client knows, whichever gateway serves it; only that one answers.",
        CancelledRequest,
    ),
    Channel(
        "cancelResponse",
        subjects.RESPONSES_CANCEL,
        CancelResponse,
        "gateway",
        "every gateway",
        "End a response, whichever gateway is writing it; only that one answers.",
        CancelledResponse,
    ),
    Channel(
        "submitJob",
        subjects.JOBS_SUBMIT,
        SubmitJob,
        "anybody",
        "planner",
        f"JetStream work queue {subjects.JOBS_STREAM}. Set Nats-Msg-Id to the job id and wait for the PubAck.",
    ),
    Channel(
        "deadJob",
        subjects.dead_letters(subjects.JOBS_STREAM),
        SubmitJob,
        "planner",
        "operator",
        "Jobs that were given up, with the reason in a header.",
    ),
    Channel(
        "jobState",
        f"{subjects.bucket_changes(subjects.JOBS_BUCKET)}.{{job}}",
        JobState,
        "NATS",
        "anybody",
        f"Every change of a job's state, republished from bucket {subjects.JOBS_BUCKET}.",
    ),
)
