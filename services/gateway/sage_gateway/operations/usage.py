"""Token counts in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sage_wire.messages import Usage

__all__ = ["PromptUsageBody", "UsageBody", "total_usage", "usage_body"]


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


def usage_body(usage: Usage, num_reasoning: int = 0) -> UsageBody:
    """Return `usage` in OpenAI's shape."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return UsageBody(
        prompt,
        completion,
        prompt + completion,
        CachedTokens(usage.cached_tokens),
        ReasoningTokens(num_reasoning),
    )


def total_usage(usages: Iterable[Usage], prompts_every: int = 1) -> Usage:
    """Return the sum of `usages`.

    With `prompts_every` choices of one prompt next to each other, a prompt counts once, as OpenAI bills it.
    """
    prompt = completion = cached = 0
    for index, usage in enumerate(usages):
        completion += usage.completion_tokens
        if index % prompts_every == 0:
            prompt += usage.prompt_tokens
            cached += usage.cached_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
