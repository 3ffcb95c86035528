"""A message of a conversation, as OpenAI's clients send it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from sage_gateway.decoding import RawObject, absent

__all__ = ["MAX_MESSAGES", "ContentPart", "ImageUrl", "MessageBody", "Messages"]

MAX_MESSAGES: Final = 4_096
MAX_CALLS: Final = 128
"""In one message."""


class ImageUrl(msgspec.Struct, frozen=True):
    """An image. `detail` is accepted; the engine decides how closely it looks."""

    url: str
    detail: str | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message."""

    type: Annotated[str, Meta(extra_json_schema={"enum": ["text", "image_url", "refusal"]})]
    text: str | None = None
    refusal: str | None = None
    image_url: str | ImageUrl | None = None


class FunctionBody(msgspec.Struct, frozen=True):
    """The function of a call, with its arguments as JSON text."""

    name: str
    arguments: str = ""


class ToolCallBody(msgspec.Struct, frozen=True):
    """A call that the assistant made."""

    id: str
    function: FunctionBody
    type: Literal["function"] = "function"


class MessageBody(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Meta(min_length=1)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCallBody], Meta(max_length=MAX_CALLS)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    function_call: FunctionBody | None = None
    audio: RawObject = field(default_factory=absent)


Messages = Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_MESSAGES)]
