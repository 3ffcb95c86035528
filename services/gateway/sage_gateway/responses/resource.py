"""The response object: what was asked for, and what came of it.

Every field that OpenAI's and Open Responses' schemas require is there. What a request leaves to the model's defaults is
shown as OpenAI's own default, as neither schema knows an unknown temperature.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sage_gateway.operations.extras_body import SourceBody, StageTimes
from sage_gateway.responses.bodies import CreateBody, FormatBody, ToolBody, ToolChoiceBody
from sage_gateway.responses.items import Item
from sage_wire.messages import Usage

__all__ = [
    "IncompleteDetails",
    "ResponseBody",
    "ResponseError",
    "ResponseStatus",
    "ResponseUsage",
    "usage_of",
]

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class _InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts as the engine counted them; of reasoning, by its share of the text."""

    input_tokens: int
    input_tokens_details: _InputDetails
    output_tokens: int
    output_tokens_details: _OutputDetails
    total_tokens: int


def usage_of(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    """Return `usage` in this API's shape."""
    return ResponseUsage(
        usage.prompt_tokens,
        _InputDetails(usage.cached_tokens),
        usage.completion_tokens,
        _OutputDetails(min(reasoning_tokens, usage.completion_tokens)),
        usage.prompt_tokens + usage.completion_tokens,
    )


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed. `code` is one of the few that clients' types know."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class _Tool(msgspec.Struct, frozen=True):
    name: str
    description: str | None
    parameters: Raw
    strict: bool | None
    type: Literal["function"] = "function"


class _Reasoning(msgspec.Struct, frozen=True):
    effort: str | None
    summary: str | None


class _TextFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object"]


class _SchemaFormat(msgspec.Struct, frozen=True):
    name: str
    description: str | None
    schema: Raw
    strict: bool
    type: Literal["json_schema"] = "json_schema"


class _Text(msgspec.Struct, frozen=True):
    format: _TextFormat | _SchemaFormat
    verbosity: str = "medium"


class _FunctionChoice(msgspec.Struct, frozen=True):
    name: str
    type: Literal["function"] = "function"


class _AllowedChoice(msgspec.Struct, frozen=True):
    mode: str
    tools: list[_FunctionChoice]
    type: Literal["allowed_tools"] = "allowed_tools"


class ResponseBody(msgspec.Struct, frozen=True, kw_only=True):
    """A response as clients see it and as it is stored. Times are in Unix seconds."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    presence_penalty: float
    frequency_penalty: float
    prompt_cache_key: str | None
    reasoning: _Reasoning
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: Raw
    tool_choice: Raw
    tools: Raw
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]
    sources: list[SourceBody] | UnsetType = UNSET
    sage: StageTimes | UnsetType = UNSET

    @classmethod
    def of(
        cls, body: CreateBody, *, response_id: str, created: int, model: str, is_stored: bool
    ) -> ResponseBody:
        """Return the response to `body` before anything came of it. `body` has been planned, hence is valid."""
        reasoning = body.reasoning
        summary = None if reasoning is None else reasoning.summary or reasoning.generate_summary
        tier = body.service_tier
        return cls(
            id=response_id,
            created_at=created,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            model=model,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            prompt_cache_key=body.prompt_cache_key,
            reasoning=_Reasoning(None if reasoning is None else reasoning.effort, summary),
            safety_identifier=body.safety_identifier,
            # A tier is echoed as what it became; `auto` is a question, not a tier.
            service_tier="default" if tier in (None, "auto") else tier,
            store=is_stored,
            temperature=1.0 if body.temperature is None else body.temperature,
            text=_raw(_text(body)),
            tool_choice=_raw(_tool_choice(body.tool_choice)),
            tools=_raw([_tool(tool) for tool in body.tools or ()]),
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            truncation=body.truncation or "disabled",
            user=body.user,
            metadata=body.metadata or {},
        )


def _raw(value: object) -> Raw:
    # Encoded once: a stream shows the whole response three times.
    return Raw(msgspec.json.encode(value))


def _tool(tool: ToolBody) -> _Tool:
    return _Tool(tool.name or "", tool.description, tool.parameters, tool.strict)


def _text(body: CreateBody) -> _Text:
    text = body.text
    verbosity = None if text is None else text.verbosity
    return _Text(_format(None if text is None else text.format), verbosity or "medium")


def _format(asked: FormatBody | None) -> _TextFormat | _SchemaFormat:
    if asked is None or asked.type == "text":
        return _TextFormat("text")
    if asked.type == "json_object":
        return _TextFormat("json_object")
    # The schema is enforced whether it is called strict or not.
    return _SchemaFormat(asked.name or "", asked.description, asked.schema, strict=True)


def _tool_choice(choice: str | ToolChoiceBody | None) -> str | _FunctionChoice | _AllowedChoice:
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    if choice.type == "allowed_tools":
        allowed = [_FunctionChoice(tool.name or "") for tool in choice.tools or ()]
        return _AllowedChoice(choice.mode or "auto", allowed)
    return _FunctionChoice(choice.name or "")
