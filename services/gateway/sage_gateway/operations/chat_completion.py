"""The body of a whole answer: `chat.completion`."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from sage_gateway.operations.extras_body import SourceBody, StageTimes
from sage_gateway.operations.logprobs import ChatLogprobs
from sage_gateway.operations.token_counts import UsageBody

__all__ = ["AnswerMessage", "ChatChoice", "ChatCompletion", "FunctionCallBody", "MadeToolCall"]


class FunctionCallBody(msgspec.Struct, frozen=True):
    """A function with its arguments, as JSON text that the model wrote."""

    name: str
    arguments: str


class MadeToolCall(msgspec.Struct, frozen=True):
    """A call that the model makes."""

    id: str
    function: FunctionCallBody
    type: str = "function"


class AnswerMessage(msgspec.Struct, frozen=True):
    """The assistant's turn. `content` is null where there are calls alone; the reasoning has two names in use."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    annotations: tuple[()] = ()
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MadeToolCall] | UnsetType = UNSET
    function_call: FunctionCallBody | UnsetType = UNSET
    sources: list[SourceBody] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the choices. `stop_reason` (of vLLM): the stop text or token that ended it."""

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True):
    """`POST /v1/chat/completions` answers this. Clients of vLLM look for `prompt_logprobs`, which there are none of."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    system_fingerprint: str
    object: str = "chat.completion"
    prompt_logprobs: None = None
    service_tier: str | UnsetType = UNSET
    sage: StageTimes | UnsetType = UNSET
