"""OpenAI's request bodies as typed structs: what the wire looks like, with its ranges; no meaning yet.

Fields that are not supported are declared too, as raw JSON, so that they can be refused by name. All others that
are missing here are accepted and counted. https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw

__all__ = [
    "CHAT_NO_EFFECT",
    "COMPLETION_NO_EFFECT",
    "EMBEDDING_NO_EFFECT",
    "MAX_DOCUMENTS",
    "MAX_INPUTS",
    "MAX_MESSAGES",
    "MAX_PROMPTS",
    "MAX_STOP",
    "RERANK_NO_EFFECT",
    "ChatBody",
    "CompletionBody",
    "ContentPart",
    "EmbeddingBody",
    "MessageBody",
    "RerankBody",
    "ResponseFormat",
    "ServiceTier",
    "StreamOptions",
    "TextDocument",
]

MAX_MESSAGES: Final = 4096
MAX_STOP: Final = 16
MAX_PROMPTS: Final = 16
MAX_INPUTS: Final = 2048
MAX_DOCUMENTS: Final = 2048

_MAX_INT32: Final = 2**31 - 1
_NULL: Final = Raw(b"null")

_Count = Annotated[int, Meta(ge=1, le=_MAX_INT32)]
_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Temperature = Annotated[float, Meta(ge=0, le=2)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Model = Annotated[str, Meta(min_length=1, max_length=512)]
_TokenId = Annotated[int, Meta(ge=0, le=_MAX_INT32)]
_Stop = str | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=MAX_STOP)] | None

ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream. Obfuscation is padding; there is none here, which every client accepts."""

    include_usage: bool | None = False


class ResponseFormat(msgspec.Struct, frozen=True):
    """`type` is text, json_object or json_schema."""

    type: str


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message. Only `type: text` carries text."""

    type: str
    text: str | None = None


class MessageBody(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[ContentPart], Meta(min_length=1)] | None = None
    name: str | None = None
    tool_calls: Raw = _NULL
    function_call: Raw = _NULL
    audio: Raw = _NULL


class ChatBody(msgspec.Struct, frozen=True):
    """`POST /v1/chat/completions`."""

    model: _Model
    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    stop: _Stop = None
    seed: _Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    service_tier: ServiceTier | None = None
    n: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    logit_bias: Raw = _NULL
    tools: Raw = _NULL
    tool_choice: Raw = _NULL
    functions: Raw = _NULL
    function_call: Raw = _NULL
    modalities: Raw = _NULL
    audio: Raw = _NULL
    web_search_options: Raw = _NULL
    store: bool | None = None
    parameters: dict[str, str] | None = None
    """Our extension: values of the parameters that a pipeline declares."""


CHAT_NO_EFFECT: Final = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)


class CompletionBody(msgspec.Struct, frozen=True):
    """`POST /v1/completions`. A prompt is text, a list of texts, token ids, or a list of lists of token ids."""

    model: _Model
    prompt: str | list[str | _TokenId | list[_TokenId]]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: _Count | None = None
    temperature: _Temperature | None = None
    top_p: _Share | None = None
    stop: _Stop = None
    seed: _Seed | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    service_tier: ServiceTier | None = None
    n: _Count | None = None
    best_of: _Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logit_bias: Raw = _NULL
    response_format: ResponseFormat | None = None


COMPLETION_NO_EFFECT: Final = frozenset({"user", "metadata"})


class EmbeddingBody(msgspec.Struct, frozen=True):
    """`POST /v1/embeddings`."""

    model: _Model
    input: str | list[str | _TokenId | list[_TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: _Count | None = None


EMBEDDING_NO_EFFECT: Final = frozenset({"user"})


class TextDocument(msgspec.Struct, frozen=True):
    """A text in Cohere's and Jina's object form."""

    text: str


class RerankBody(msgspec.Struct, frozen=True):
    """`POST /v1/rerank` and `/v2/rerank`, as Jina and Cohere define them."""

    model: _Model
    query: str | TextDocument
    documents: Annotated[list[str | TextDocument], Meta(min_length=1, max_length=MAX_DOCUMENTS)]
    top_n: _Count | None = None
    return_documents: bool | None = None


RERANK_NO_EFFECT: Final = frozenset({"truncation"})
