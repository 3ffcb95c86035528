"""The body of `POST /v1/chat/completions`, and what its tools mean. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from sage_gateway.decoding import BodyDecoder, RawObject, Unsupported, absent
from sage_gateway.operations.fields import Count, GenerationFields, ServiceTier, unsupported_generation
from sage_gateway.operations.message_body import Messages
from sage_gateway.operations.refusal import missing, wrong
from sage_gateway.operations.structures import FunctionName
from sage_gateway.operations.tools import MAX_TOOLS, ToolChoice, ToolReader
from sage_wire.messages import ToolDefinition

__all__ = ["CHAT_DECODER", "ChatBody", "ToolBody", "defined_tools", "requested_tools"]


class FunctionDefinition(msgspec.Struct, frozen=True):
    """A function that the model may call. A grammar enforces `parameters` where a call is required, `strict` or not."""

    name: FunctionName
    description: str | None = None
    parameters: RawObject = field(default_factory=absent)
    strict: bool | None = None


class ToolBody(msgspec.Struct, frozen=True):
    """A tool; functions are the only kind there is."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(msgspec.Struct, frozen=True):
    """A function, by its name."""

    name: str


class AllowedTool(msgspec.Struct, frozen=True):
    """One of the tools that may be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


class AllowedTools(msgspec.Struct, frozen=True):
    """The tools that may (`auto`) or must (`required`) be called, out of all that are given."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[AllowedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class ToolChoiceBody(msgspec.Struct, frozen=True):
    """The function to call (`type: function`), or which may be called (`type: allowed_tools`)."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ChatBody(GenerationFields, frozen=True, kw_only=True):
    """Fields beyond those of all generated text. What is not named here is accepted and counted."""

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: ServiceTier | None = None
    metadata: _Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Beyond OpenAI: vLLM's, and `parameters`, the values of what a pipeline declares.
    chat_template_kwargs: RawObject = field(default_factory=absent)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None
    parameters: dict[str, str] | None = None


_NO_EFFECT: Final = frozenset({"prediction", "prompt_cache_retention"})
"""Hints whose only effect is on speed, which is the scheduler's and the engine's own concern."""

CHAT_DECODER: Final = BodyDecoder(
    ChatBody,
    _NO_EFFECT,
    unsupported_generation
    | {
        "modalities": Unsupported("only text is generated", (b'["text"]',)),
        "audio": Unsupported("only text is generated"),
        "web_search_options": Unsupported("there is no web search"),
        "store": Unsupported("chats are not stored; /v1/responses stores its own"),
        "chat_template": Unsupported("templates are not taken from requests"),
        "documents": Unsupported("is not supported; put documents into a message, or ask a pipeline"),
        "mm_processor_kwargs": Unsupported("is not supported"),
    },
)


def requested_tools(body: ChatBody) -> tuple[list[ToolDefinition], ToolChoice]:
    """Return the functions of a body and which to call, in the present or the deprecated form.

    Raises BadRequest and LimitExceeded naming what is wrong.
    """
    if body.functions is not None:
        if body.tools is not None:
            raise wrong("functions", "is the old name of tools; give one of them")
        return _functions(body)
    if body.function_call not in (None, "none", "auto"):
        raise wrong("function_call", "needs functions")
    return defined_tools(body.tools), _tool_choice(body.tool_choice)


def defined_tools(bodies: list[ToolBody] | None) -> list[ToolDefinition]:
    """Return the functions of a body's `tools`. Raises BadRequest and LimitExceeded naming what is wrong."""
    return _definitions([tool.function for tool in bodies or ()], "tools", ".function")


def _functions(body: ChatBody) -> tuple[list[ToolDefinition], ToolChoice]:
    tools = _definitions(body.functions or (), "functions")
    match body.function_call:
        case NamedFunction(name=name):
            return tools, ToolChoice("named", (name,))
        case "none":
            return tools, ToolChoice("none")
    return tools, ToolChoice("auto")


def _definitions(
    functions: Sequence[FunctionDefinition], param: str, field_name: str = ""
) -> list[ToolDefinition]:
    reader = ToolReader(param)
    for index, function in enumerate(functions):
        reader.add(function.name, function.description, function.parameters, f"{param}[{index}]{field_name}")
    return reader.tools


def _tool_choice(given: str | ToolChoiceBody | None) -> ToolChoice:
    match given:
        case None | "auto":
            return ToolChoice("auto")
        case "none":
            return ToolChoice("none")
        case "required":
            return ToolChoice("required")
        case ToolChoiceBody(type="function", function=NamedFunction(name=name)):
            return ToolChoice("named", (name,))
        case ToolChoiceBody(type="function"):
            raise missing("tool_choice.function")
        case ToolChoiceBody(type="allowed_tools", allowed_tools=AllowedTools(mode=mode, tools=tools)):
            return ToolChoice(mode, tuple(tool.function.name for tool in tools))
    raise missing("tool_choice.allowed_tools")
