"""The bodies that say how many tokens a request took, in OpenAI's shape."""

from __future__ import annotations

import msgspec

__all__ = ["CachedTokens", "PromptUsageBody", "ReasoningTokens", "UsageBody"]


class CachedTokens(msgspec.Struct, frozen=True):
    """Tokens of the prompt that the engine had in its cache."""

    cached_tokens: int


class ReasoningTokens(msgspec.Struct, frozen=True):
    """Tokens generated before the answer, estimated by characters where text of both arrived as one."""

    reasoning_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    """Token counts of generated text."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class PromptUsageBody(msgspec.Struct, frozen=True):
    """Token counts where nothing is generated."""

    prompt_tokens: int
    total_tokens: int
