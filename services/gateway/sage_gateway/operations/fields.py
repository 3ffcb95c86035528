"""What bodies of chat and completions have in common: fields with their ranges, and the sampling they ask for.

https://platform.openai.com/docs/api-reference; the fields under "beyond OpenAI" are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, field

from sage_gateway.decoding import Unsupported, absent
from sage_gateway.operations.structures import (
    Choices,
    GrammarText,
    PatternText,
    ResponseFormat,
    StructuredOutputs,
)

__all__ = [
    "ID_DIGITS",
    "MAX_CHOICES",
    "MAX_LOGIT_BIAS",
    "MAX_SEED",
    "MAX_STOP",
    "MAX_STOP_CHARS",
    "MAX_TOKEN_ID",
    "Count",
    "GenerationFields",
    "ModelName",
    "ServiceTier",
    "StreamOptions",
    "TokenId",
    "unsupported_generation",
]

MAX_CHOICES: Final = 16
MAX_STOP: Final = 16
"""OpenAI allows 4."""
MAX_STOP_CHARS: Final = 1_024
MAX_STOP_TOKENS: Final = 128
MAX_LOGIT_BIAS: Final = 1_024

MAX_SEED: Final = 2**63 - 1
MAX_TOKEN_ID: Final = 10**15 - 1
"""No vocabulary is so large, but emulated ones make ids of bytes; each engine checks its own."""

_MAX_INT32: Final = 2**31 - 1

Count = Annotated[int, Meta(ge=1, le=_MAX_INT32)]
ModelName = Annotated[str, Meta(min_length=1, max_length=512)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
ServiceTier = Literal["auto", "default", "flex", "priority", "scale"]

_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Share = Annotated[float, Meta(ge=0, le=1)]
_StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]


ID_DIGITS: Final = "0|[1-9][0-9]{0,14}"
_LogitBias = Annotated[
    dict[str, Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=MAX_LOGIT_BIAS, extra_json_schema={"propertyNames": {"pattern": f"^({ID_DIGITS})$"}}),
]
"""Names are checked where they are used, so that the message has all that are wrong."""


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream. Obfuscation is padding; there is none here, which every client accepts."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = False


class GenerationFields(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of every body that has text generated."""

    model: ModelName
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: _StopText | Annotated[list[_StopText], Meta(max_length=MAX_STOP)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=MAX_SEED)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: _LogitBias | None = None
    user: str | None = None
    echo: bool | None = None
    response_format: ResponseFormat | None = None

    # Beyond OpenAI.
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_INT32)] | None = None
    min_p: _Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw = field(default_factory=absent)
    guided_regex: PatternText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None


_NO_BEAM: Final = "beam search is not supported"
_BY_TEXT: Final = "is not supported; text is always made without special tokens"

unsupported_generation: Final = {
    "use_beam_search": Unsupported(_NO_BEAM),
    "length_penalty": Unsupported(_NO_BEAM, (b"1", b"1.0")),
    "early_stopping": Unsupported(_NO_BEAM),
    "prompt_logprobs": Unsupported("is not supported; /v1/completions with echo and logprobs has them"),
    "truncate_prompt_tokens": Unsupported("prompts are never cut; send what fits"),
    "skip_special_tokens": Unsupported(_BY_TEXT, (b"true",)),
    "spaces_between_special_tokens": Unsupported(_BY_TEXT, (b"true",)),
    "bad_words": Unsupported("is not supported; logit_bias excludes tokens"),
    "allowed_token_ids": Unsupported("is not supported; structured_outputs says what may be written"),
    "logits_processors": Unsupported("no code is taken from requests"),
    "cache_salt": Unsupported("is not supported: the prefix cache is not divided by salt"),
    "guided_decoding_backend": Unsupported("is not supported: the engine's own one is used"),
    "guided_whitespace_pattern": Unsupported(
        "is not supported: at most one space stands between tokens of JSON"
    ),
}
"""Fields that would change the answer if they were taken."""
