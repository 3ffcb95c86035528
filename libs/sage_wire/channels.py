"""Every subject with who sends what to whom on it: the table behind proto/asyncapi.json and the rights of each role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sage_wire import roles, subjects
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
from sage_wire.roles import Party

__all__ = ["CHANNELS", "PARAMETERS", "RECEIVER_PARAMETER", "SENDER_PARAMETER", "Channel"]

SENDER_PARAMETER: Final = "{kind}"
"""Stands in an address for the sender's own role: nobody speaks for another."""
RECEIVER_PARAMETER: Final = "{role}"
"""Stands in an address for the receiver's own role: nobody reads what is another's."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A subject. `address` has parameters in braces. `reply` is None where nothing is answered.

    `has_reply_subject`: messages carry one although nothing is answered, so that the server says where nobody listens.
    `stream` is where messages are kept until their receiver reads them there; nobody subscribes to the subject.
    """

    name: str
    address: str
    message: type[Message]
    sender: Party
    receiver: Party
    description: str
    reply: type[Message] | None = None
    has_reply_subject: bool = False
    stream: str | None = None


PARAMETERS: Final = {
    "pool": "base32(sha256(pool name)), lower case, first 16 characters. A pool name is a model, "
    "operator/<type> or pipeline/<name>.",
    "worker": "A worker's actor id.",
    "role": "The consumer's role: gateway, planner, operator or llm-worker.",
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
        roles.CONSUMER,
        roles.SCHEDULER,
        "Ask for work. Answers and results come as frames on each submit's reply_to; what is dispatched at once is "
        "not answered. Published with a reply subject of the consumer's own, on which NATS says 503 (no responders) "
        "while no scheduler leads the pool, and nobody else anything.",
        has_reply_subject=True,
    ),
    Channel(
        "cancelAtScheduler",
        subjects.ALL_CANCELS.replace("*", "{pool}"),
        Cancel,
        roles.CONSUMER,
        roles.SCHEDULER,
        "Stop a request wherever it is.",
    ),
    Channel(
        "report",
        subjects.ALL_REPORTS.replace("*", "{pool}"),
        Reports,
        roles.WORKER,
        roles.SCHEDULER,
        "What became of dispatches. A report that a later one in the message implies is left out.",
    ),
    Channel(
        "dispatch",
        subjects.worker_dispatch(_W),
        Dispatches,
        roles.SCHEDULER,
        roles.WORKER,
        "Start requests.",
    ),
    Channel(
        "cancelAtWorker",
        subjects.worker_cancel(_W),
        Cancel,
        roles.SCHEDULER_OR_CONSUMER,
        roles.WORKER,
        "Stop a request, in any phase; one that is still to come is stopped on arrival.",
    ),
    Channel(
        "lead",
        subjects.worker_lead(_W),
        Lead,
        roles.SCHEDULER,
        roles.WORKER,
        "Who leads a pool of the worker now; dispatches of earlier leaders are refused from then on.",
    ),
    Channel(
        "frames",
        subjects.frames("{consumer}", RECEIVER_PARAMETER),
        Frame,
        roles.WORKER_OR_SCHEDULER,
        roles.FRAME_READER,
        "Results of all requests of one consumer, and schedulers' answers to its submits. A scheduler sends Failed "
        "with seq -1, out of band.",
    ),
    Channel(
        "ping",
        subjects.actor(_A, "ping"),
        Ping,
        roles.OPERATOR,
        roles.ACTORS,
        "Is its event loop alive?",
        Pong,
    ),
    Channel(
        "drain",
        subjects.actor(_A, "drain"),
        Drain,
        roles.OPERATOR,
        roles.ACTORS,
        "Finish or hand over what is held, then exit.",
        Draining,
    ),
    Channel(
        "discover",
        subjects.every("discover"),
        Discover,
        roles.FOLLOWER,
        roles.EVERY_ACTOR,
        "Ask for announcements now; they come where announcements come.",
    ),
    Channel(
        "findSpans",
        subjects.every("find_spans"),
        FindSpans,
        roles.OPERATOR,
        roles.EVERY_ACTOR,
        "Recent spans of a trace; each actor answers for itself.",
        FoundSpans,
    ),
    Channel(
        "announce",
        subjects.announce(SENDER_PARAMETER, _A),
        Announcement,
        roles.ACTORS,
        roles.FOLLOWER,
        "Presence: on every change and once per interval.",
    ),
    Channel(
        "findReceipt",
        subjects.RECEIPTS_FIND,
        FindReceipt,
        roles.OPERATOR,
        roles.EVERY_SCHEDULER,
        "Why a request went where it went.",
        Receipt,
    ),
    Channel(
        "cancelRequest",
        subjects.REQUESTS_CANCEL,
        CancelRequest,
        roles.GATEWAY,
        roles.EVERY_GATEWAY,
        "End a request by the id that its client knows, whichever gateway serves it; only that one answers.",
        CancelledRequest,
    ),
    Channel(
        "cancelResponse",
        subjects.RESPONSES_CANCEL,
        CancelResponse,
        roles.GATEWAY,
        roles.EVERY_GATEWAY,
        "End a response, whichever gateway is writing it; only that one answers.",
        CancelledResponse,
    ),
    Channel(
        "submitJob",
        subjects.JOBS_SUBMIT,
        SubmitJob,
        roles.SUBMITTER,
        roles.PLANNER,
        f"JetStream work queue {subjects.JOBS_STREAM}. Set Nats-Msg-Id to the job id and wait for the PubAck.",
        stream=subjects.JOBS_STREAM,
    ),
    Channel(
        "deadJob",
        subjects.dead_letters(subjects.JOBS_STREAM),
        SubmitJob,
        roles.PLANNER,
        roles.OPERATOR,
        "Jobs that were given up, with the reason in a header.",
        stream=subjects.dead_stream(subjects.JOBS_STREAM),
    ),
    Channel(
        "jobState",
        f"{subjects.bucket_changes(subjects.JOBS_BUCKET)}.{{job}}",
        JobState,
        roles.NATS,
        roles.JOB_READER,
        f"Every change of a job's state, republished from bucket {subjects.JOBS_BUCKET}.",
    ),
)
