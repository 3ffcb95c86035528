"""Presence, cancel, drain and inspection of actors."""

from __future__ import annotations

from sage_wire.messages.base import Message

__all__ = [
    "Announcement",
    "Cancel",
    "CancelRequest",
    "CancelResponse",
    "CancelledRequest",
    "CancelledResponse",
    "DecisionFacts",
    "Discover",
    "Drain",
    "Draining",
    "EngineProfile",
    "FindReceipt",
    "FindSpans",
    "FoundSpans",
    "Ping",
    "Pong",
    "Receipt",
    "ReceiptCandidate",
    "ReceiptTimes",
    "ServedModel",
    "Span",
    "Telemetry",
]


class EngineProfile(Message, frozen=True):
    """Limits of one engine, and how long its steps take where that is known; 0 means unknown.

    The coefficients are seconds per unit. With `c` prefill tokens on a context of `ctx`, `N` decoding sequences and
    `K` tokens in the KV cache, a step takes `host` more than

        a0 + a1*N + a2*K                                             without prefill (c = 0)
        m0 + m1*(c + N) + m2*K + m3*SUM c*(ctx + c/2) + m4*N         with prefill

    A batch of an engine that computes whole batches is one step without decoding. `watermark` is the share of the KV
    cache that stays free when a prompt is admitted.
    """

    a0: float = 0.0
    a1: float = 0.0
    a2: float = 0.0
    m0: float = 0.0
    m1: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    host: float = 0.0
    max_sequences: int = 0
    max_step_tokens: int = 0
    max_context: int = 0
    kv_tokens: int = 0
    block_tokens: int = 0
    watermark: float = 0.0


class Telemetry(Message, frozen=True):
    """What a worker's engine says of itself now. `kv_used` is a share of the KV cache, 0 to 1."""

    pool: str
    num_running: int = 0
    num_waiting: int = 0
    kv_used: float = 0.0


class ServedModel(Message, frozen=True):
    """A pool a worker serves. `task` is generate, embed, rerank, operator or pipeline.

    `takes`: what a pipeline's runs bring, messages or documents; empty for other tasks. `is_batched`: it computes
    whole batches, not token by token. `device` names the accelerator on its host, e.g. cuda:0 or cpu; pools of one
    device slow each other down. Empty: it computes nothing itself. `tool_format` and `reasoning_format` name how the
    model writes tool calls and reasoning into its text, e.g. `hermes` and `think`; empty: it does not. `takes_images`:
    messages may hold images.
    """

    name: str
    task: str
    engine: str = ""
    max_context: int = 0
    dim: int = 0
    description: str = ""
    takes: str = ""
    is_batched: bool = False
    is_gpu: bool = False
    device: str = ""
    profile: EngineProfile | None = None
    tool_format: str = ""
    reasoning_format: str = ""
    takes_images: bool = False


class Announcement(Message, frozen=True):
    """Sent on every change and once per interval. Three missed intervals mean that the actor is gone.

    `state` is starting, ready, draining or stopped. `epoch` is new in each life of a process; `sequence` counts
    announcements of one life. `in_flight` lists request ids with their attempt, `id/attempt`, for schedulers
    that start anew; `num_tokens`, where given, says for each of them how many tokens it has generated. `leads`: the
    pools that a scheduler leads.
    """

    actor_id: str
    kind: str
    epoch: str
    sequence: int
    state: str
    version: str
    host: str
    pid: int
    interval_ms: int = 1000
    models: list[ServedModel] = []
    max_in_flight: int = 0
    num_in_flight: int = 0
    num_queued: int = 0
    in_flight: list[str] = []
    health: str = "ok"
    started_s_ago: float = 0.0
    num_tokens: list[int] = []
    telemetry: list[Telemetry] = []
    leads: list[str] = []


class Discover(Message, frozen=True):
    """Asked of every actor: announce yourself now."""


class Ping(Message, frozen=True):
    """Asked of one actor; answered from its event loop, so a stuck loop does not answer."""


class Pong(Message, frozen=True):
    """The answer to Ping."""

    actor_id: str
    epoch: str
    state: str


class Drain(Message, frozen=True):
    """Ask an actor to stop taking work, finish or hand over what it holds, and exit."""

    timeout_ms: int = 20000


class Draining(Message, frozen=True):
    """The answer to Drain, at once."""

    num_in_flight: int


class Cancel(Message, frozen=True):
    """Stop a request in any phase. Idempotent; unknown ids are remembered briefly, as the submit may be behind."""

    request_id: str
    attempt: int | None = None
    reason: str = "cancelled by the caller"


class CancelRequest(Message, frozen=True):
    """Asked of every gateway: end a request of `tenant`, by our id or its client's. Only one that serves it answers."""

    tenant: str
    request_id: str


class CancelledRequest(Message, frozen=True):
    """The answer to CancelRequest."""

    num_requests: int


class CancelResponse(Message, frozen=True):
    """Asked of every gateway: end a response of `tenant`. Only the gateway that is writing it answers."""

    tenant: str
    response_id: str


class CancelledResponse(Message, frozen=True):
    """The answer to CancelResponse: the response as clients see it, as JSON text."""

    response: str


class FindSpans(Message, frozen=True):
    """Asked of every actor: recent spans of one trace, or of the traces that a request id appears in."""

    trace_id: str
    request_id: str = ""


class Span(Message, frozen=True):
    """A finished span. Times are Unix nanoseconds of the host that recorded it.

    `kind` is internal, server, client, producer or consumer. `links` are the earlier attempts that this one is made
    for, each as `trace_id-span_id`.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    service: str
    start_ns: int
    end_ns: int
    is_error: bool = False
    attributes: dict[str, str | int | float | bool] = {}
    kind: str = "internal"
    links: list[str] = []


class FoundSpans(Message, frozen=True):
    """The answer to FindSpans."""

    actor_id: str
    spans: list[Span]


class FindReceipt(Message, frozen=True):
    """Asked of every scheduler."""

    request_id: str


class ReceiptCandidate(Message, frozen=True):
    """An instance that was considered; lower score wins. `reason` says why it could not be used, empty if it could."""

    instance_id: str
    score: float
    reason: str = ""


class ReceiptTimes(Message, frozen=True):
    """How a dispatch goes, in milliseconds from the decision: as the policy saw it, or as the worker reported it.

    None where nothing is known. The counts are of what was reported.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    num_tokens: int = 0
    num_cached: int = 0


class DecisionFacts(Message, frozen=True):
    """Who decided, under which `fence`; the batch of a dispatch; what a shed request was told."""

    scheduler_id: str
    fence: int = 0
    batch: int = 0
    batch_size: int = 0
    code: str = ""
    retry_after: float | None = None


class Receipt(Message, frozen=True):
    """Why a scheduler did what it did with a request. `decision` is dispatched, held, shed or aborted.

    `predicted_ms` and `actual_ms` are of the whole request, from the decision on; `predicted` and `actual` say more.
    """

    request_id: str
    attempt: int
    pool: str
    policy: str
    decision: str
    reason: str
    queue_ms: float
    num_queued: int
    chosen: str | None = None
    candidates: list[ReceiptCandidate] = []
    predicted_ms: float | None = None
    actual_ms: float | None = None
    predicted: ReceiptTimes | None = None
    actual: ReceiptTimes | None = None
    facts: DecisionFacts | None = None
