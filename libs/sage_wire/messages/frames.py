"""What comes back: events of many requests, coalesced into one frame per consumer and event-loop turn."""

from __future__ import annotations

import msgspec

from sage_wire.messages.base import Message, WireError
from sage_wire.messages.work import Hit

__all__ = [
    "Annotated",
    "Answer",
    "Completed",
    "Delta",
    "Event",
    "Failed",
    "Frame",
    "Logprob",
    "Output",
    "Scores",
    "Started",
    "Timings",
    "TokenLogprobs",
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
    """The worker holds the request. An attempt's first event; it may come a moment late, with the first result."""

    worker_id: str
    model: str
    queue_ms: float = 0.0


class Logprob(Message, frozen=True):
    """A token's text and the natural logarithm of its probability. `raw`: its bytes, where they are not that text's."""

    text: str
    logprob: float
    token_id: int = -1
    raw: bytes = b""


class TokenLogprobs(Message, frozen=True):
    """A token of the text, and the likeliest ones at its place, likeliest first.

    `chosen.logprob` of the first token of a prompt is 0 and `is_first` is set: nothing came before it.
    """

    chosen: Logprob
    top: list[Logprob] = []
    is_first: bool = False


class Tokens(Message, frozen=True, tag="tokens"):
    """Generated text; `token_ids` is empty where the engine has none. Never empty text and no tokens.

    `num_cached`, with an attempt's first piece: prompt tokens that the engine had in its cache. `logprobs`, where
    asked for: one entry per token whose text this is. `is_prompt`: this is the prompt itself (`Generate.echo`); it is
    not counted, and an attempt that resumes does not send it again.
    """

    text: str
    token_ids: list[int] = []
    num_tokens: int = 1
    num_cached: int = 0
    logprobs: list[TokenLogprobs] = []
    is_prompt: bool = False


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
    """The last event of a request that succeeded. `finish_reason` is stop or length.

    `stop_reason`: the stop string, or the id of the stop token, that ended it; None at the model's own end.
    """

    finish_reason: str = "stop"
    usage: Usage = Usage()
    timings: Timings = Timings()
    stop_reason: int | str | None = None


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


class Answer(Message, frozen=True):
    """What the scheduler makes of a submit: it holds the request, or refuses it with `error`.

    A request that was dispatched at once is not answered: its worker's `Started` says the same. A submit that is
    repeated always is. `epoch` names the scheduler's life.
    """

    request_id: str
    attempt: int
    scheduler_id: str = ""
    epoch: str = ""
    error: WireError | None = None


class Frame(Message, frozen=True):
    """All that one worker or scheduler has for one consumer in one turn of its event loop, in order."""

    deltas: list[Delta] = []
    answers: list[Answer] = []
