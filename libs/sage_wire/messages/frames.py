"""What comes back: events of many requests, coalesced into one frame per consumer and event-loop turn."""

from __future__ import annotations

import msgspec

from sage_wire.messages.base import Message, WireError
from sage_wire.messages.work import Hit

__all__ = [
    "Annotated",
    "Completed",
    "Delta",
    "Event",
    "Failed",
    "Frame",
    "Output",
    "Scores",
    "Started",
    "Timings",
    "Tokens",
    "Usage",
    "Vectors",
]


class Usage(Message, frozen=True):
    """Token counts as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Timings(Message, frozen=True):
    """Durations in milliseconds, each measured on one host's clock."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Started(Message, frozen=True, tag="started"):
    """The worker holds the request; before this event it may be resubmitted freely."""

    worker_id: str
    model: str
    queue_ms: float = 0.0


class Tokens(Message, frozen=True, tag="tokens"):
    """Generated text; `token_ids` is empty where the engine has none. Never empty text and no tokens.

    `num_cached`, with an attempt's first piece: prompt tokens that the engine had in its cache.
    """

    text: str
    token_ids: list[int] = []
    num_tokens: int = 1
    num_cached: int = 0


class Vectors(Message, frozen=True, tag="vectors"):
    """Embeddings `offset … offset+n` of the request's texts.

    `data`: little-endian float32, shape (n, dim), L2-normalised, row-major.
    """

    offset: int
    dim: int
    data: bytes


class Scores(Message, frozen=True, tag="scores"):
    """Relevance of each document in the request's order; higher is better."""

    scores: list[float]


class Output(Message, frozen=True, tag="output"):
    """The value of an operator: an encoded message whose type the work names (`Split` → `SplitChunks` …)."""

    value: msgspec.Raw


class Annotated(Message, frozen=True, tag="annotated"):
    """Facts beside the text: the passages an answer rests on, and what each pipeline node took."""

    sources: list[Hit] = []
    stage: str | None = None
    stage_ms: float = 0.0


class Completed(Message, frozen=True, tag="completed"):
    """The last event of a request that succeeded. `finish_reason` is stop or length."""

    finish_reason: str = "stop"
    usage: Usage = Usage()
    timings: Timings = Timings()


class Failed(Message, frozen=True, tag="failed"):
    """The last event of a request that did not."""

    error: WireError


Event = Started | Tokens | Vectors | Scores | Output | Annotated | Completed | Failed


class Delta(Message, frozen=True):
    """One event of one attempt. `seq` counts an attempt's events from 0 without gaps: a gap is a loss."""

    request_id: str
    attempt: int
    seq: int
    event: Event


class Frame(Message, frozen=True):
    """All deltas that one worker produced for one consumer in one turn of its event loop, in order."""

    deltas: list[Delta]
