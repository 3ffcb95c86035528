"""From the wire's token counts to OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence

from sage_gateway.operations.token_counts import CachedTokens, ReasoningTokens, UsageBody
from sage_wire.messages import Usage

__all__ = ["total_usage", "usage_body"]


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


def total_usage(usages: Sequence[Usage], prompts_every: int = 1) -> Usage:
    """Return the sum of `usages`.

    With `prompts_every` choices of one prompt next to each other, a prompt counts once, as OpenAI bills it.
    """
    if len(usages) == 1:
        return usages[0]
    prompt = completion = cached = 0
    for index, usage in enumerate(usages):
        completion += usage.completion_tokens
        if index % prompts_every == 0:
            prompt += usage.prompt_tokens
            cached += usage.cached_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
