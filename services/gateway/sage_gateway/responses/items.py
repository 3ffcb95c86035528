"""The items of a response's input and output, in the shape that clients are shown and that is stored.

https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from sage_gateway.operations.logprobs import TokenBody

__all__ = [
    "FunctionCall",
    "FunctionCallOutput",
    "InputImage",
    "InputText",
    "Item",
    "ItemIds",
    "Message",
    "OutputText",
    "ReasoningItem",
    "ReasoningText",
    "Refusal",
    "SummaryText",
    "response_of",
]

Status = Literal["in_progress", "completed", "incomplete"]

_PREFIX = "resp_"


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text that the client sent."""

    text: str


class InputImage(msgspec.Struct, frozen=True, tag_field="type", tag="input_image"):
    """An image that the client sent, as a `data:` URL."""

    image_url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"
    file_id: None = None


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text that the model wrote. There are no annotations: nothing here cites."""

    text: str
    annotations: list[None] = []
    logprobs: list[TokenBody] = []


class Refusal(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What a model of an earlier turn said instead of an answer; never made here."""

    refusal: str


class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """Reasoning, shown as its own summary."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """Reasoning."""

    text: str


class Message(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """One turn of text. `phase` is a client's own label of an assistant's turn, kept as it came."""

    id: str
    role: Literal["system", "developer", "user", "assistant"]
    content: list[InputText | InputImage | OutputText | Refusal]
    status: Status = "completed"
    phase: Literal["commentary", "final_answer"] | UnsetType = UNSET


class FunctionCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A call that the model asks its client to make. `arguments` is what it wrote, JSON text as a rule."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class FunctionCallOutput(msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output"):
    """What a call returned."""

    id: str
    call_id: str
    output: str | list[InputText]
    status: Status = "completed"


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """What the model wrote before its answer."""

    id: str
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    status: Status = "completed"


Item = Message | FunctionCall | FunctionCallOutput | ReasoningItem
"""Everything a conversation is made of."""


class ItemIds:
    """Names the items of one response. Each id holds the response's, so that a reference to an item finds it.

    `msg_<response>o0` is the first item of the output, `msg_<response>i0` of the input; `fc_`, `fco_` and `rs_` are
    calls, their outputs and reasoning.
    """

    def __init__(self, response_id: str, side: Literal["i", "o"]) -> None:
        self._tail = response_id.removeprefix(_PREFIX) + side
        self._count = 0

    def next(self, prefix: Literal["msg", "fc", "fco", "rs"]) -> str:
        """Return the id of the next item."""
        found = f"{prefix}_{self._tail}{self._count}"
        self._count += 1
        return found


def response_of(item_id: str) -> str | None:
    """Return the id of the response that an item of ours belongs to; None for what is no such id."""
    _, separator, tail = item_id.partition("_")
    body = tail.rstrip("0123456789")
    if not separator or body == tail or body[-1:] not in ("i", "o") or len(body) < 2:
        return None
    return _PREFIX + body[:-1]
