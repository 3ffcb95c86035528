"""The body of `POST /v1/responses` as typed structs: what the wire looks like, with its ranges; no meaning yet.

What is not supported is refused by name; fields that are missing here are accepted and counted.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from sage_gateway.decoding import BodyDecoder, RawObject, Unsupported, absent

__all__ = [
    "CREATE_DECODER",
    "MAX_INPUT_ITEMS",
    "MAX_TOOLS",
    "AllowedTool",
    "CreateBody",
    "FormatBody",
    "InputItem",
    "InputPart",
    "ReasoningBody",
    "StreamOptions",
    "TextBody",
    "ToolBody",
    "ToolChoiceBody",
]

MAX_INPUT_ITEMS: Final = 4096
MAX_TOOLS: Final = 128
_MAX_INT32: Final = 2**31 - 1

_Count = Annotated[int, Meta(ge=1, le=_MAX_INT32)]
_Id = Annotated[str, Meta(min_length=1, max_length=512)]
_FunctionName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]
_ServiceTier = Literal["auto", "default", "flex", "priority", "scale", "fast"]
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Summary = Literal["auto", "concise", "detailed"]
_Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class InputPart(msgspec.Struct, frozen=True):
    """One part of an item: input_text, input_image, output_text, refusal, reasoning_text or summary_text."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    file_id: str | None = None


class InputItem(msgspec.Struct, frozen=True):
    """Any item of the input. Without `type` it is a message where it has a role, else a reference."""

    type: str | None = None
    id: _Id | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None
    status: str | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: _Id | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None


class ToolBody(msgspec.Struct, frozen=True):
    """One tool; only `type: function` is known."""

    type: str
    name: _FunctionName | None = None
    description: str | None = None
    parameters: RawObject = field(default_factory=absent)
    strict: bool | None = None


class AllowedTool(msgspec.Struct, frozen=True):
    """One of the tools that may be called."""

    type: str
    name: str | None = None


class ToolChoiceBody(msgspec.Struct, frozen=True):
    """A choice in its object form: a function, or a set of allowed tools."""

    type: str
    name: str | None = None
    mode: Literal["none", "auto", "required"] | None = None
    tools: Annotated[list[AllowedTool], Meta(max_length=MAX_TOOLS)] | None = None


class FormatBody(msgspec.Struct, frozen=True):
    """What the text must look like. `schema` is JSON Schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    description: str | None = None
    schema: RawObject = field(default_factory=absent)
    strict: bool | None = None


class TextBody(msgspec.Struct, frozen=True):
    """Options of the text. Verbosity is told to the chat template, which may know it."""

    format: FormatBody | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningBody(msgspec.Struct, frozen=True):
    """How much to reason, and whether the reasoning is shown as its own summary."""

    effort: _Effort | None = None
    summary: _Summary | None = None
    generate_summary: _Summary | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream. Obfuscation is padding; there is none here, which every client accepts."""

    include_obfuscation: bool | None = None


class CreateBody(msgspec.Struct, frozen=True):
    """`POST /v1/responses`."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | Annotated[list[InputItem], Meta(max_length=MAX_INPUT_ITEMS)] | None = None
    instructions: str | None = None
    previous_response_id: _Id | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: _Count | None = None
    text: TextBody | None = None
    reasoning: ReasoningBody | None = None
    max_output_tokens: _Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: Annotated[list[_Include], Meta(max_length=16)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=512)] | None = None
    service_tier: _ServiceTier | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    parameters: dict[str, str] | None = None
    """Our extension: values of the parameters that a pipeline declares."""


CREATE_DECODER: Final = BodyDecoder(
    CreateBody,
    frozenset({"prompt_cache_retention", "prompt_cache_options"}),
    {
        "background": Unsupported("a response lasts as long as its request; stream it instead"),
        "conversation": Unsupported("there are no conversation objects; use previous_response_id"),
        "prompt": Unsupported("there are no stored prompts; send the text"),
        "context_management": Unsupported("nothing is compacted; send the input that is meant"),
        "moderation": Unsupported("nothing is moderated here"),
    },
)
