"""What a request may generate: the same checks for every engine, before anything runs."""

from __future__ import annotations

from typing import Final

from sage_core import BadRequest, ContextLengthExceeded
from sage_wire.messages import ChatPrompt, Generate, Sampling, Tokenize

__all__ = [
    "MAX_LOGPROBS",
    "check_sampling",
    "check_vocabulary",
    "num_resumed",
    "output_limit",
    "refuse_images",
]

MAX_LOGPROBS: Final = 20
"""Likeliest tokens that may be asked for at each place; OpenAI's limit, and vLLM's own default."""


def check_sampling(sampling: Sampling) -> None:
    """Raise BadRequest, naming the field, for a value that no engine can honour."""
    _check_range("temperature", sampling.temperature, 0.0, 100.0)
    _check_range("top_p", sampling.top_p, 0.0, 1.0)
    _check_range("min_p", sampling.min_p, 0.0, 1.0)
    _check_range("top_k", sampling.top_k, -1, 2**31)
    _check_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    _check_range("min_tokens", sampling.min_tokens, 0, 2**31)
    _check_range("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    penalty = sampling.repetition_penalty
    if penalty is not None and not 0.0 < penalty <= 100.0:
        raise BadRequest(f"repetition_penalty is {penalty}; expected more than 0", param="repetition_penalty")
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise BadRequest(
            f"min_tokens is {sampling.min_tokens}; expected at most max_tokens, {sampling.max_tokens}",
            param="min_tokens",
        )
    for bias in sampling.logit_bias:
        _check_range("logit_bias", bias.bias, -100.0, 100.0)


def check_vocabulary(sampling: Sampling, vocab_size: int) -> None:
    """Raise BadRequest for tokens in `logit_bias` or `stop_token_ids` that the model does not have."""
    for param, ids in (
        ("logit_bias", [bias.token_id for bias in sampling.logit_bias]),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise BadRequest(
                    f"{param} names token id {token_id}; the model's vocabulary has {vocab_size}", param=param
                )


def refuse_images(request: Generate | Tokenize) -> None:
    """Raise BadRequest for a prompt with images, for models that read text alone."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt) and any(message.images for message in prompt.messages):
        raise BadRequest("this model reads text alone; it takes no images", param="messages")


def num_resumed(request: Generate) -> int:
    """Return how many tokens an earlier attempt already delivered."""
    if request.resume is None:
        return 0
    return max(request.resume.num_tokens, len(request.resume.token_ids))


def output_limit(request: Generate, *, num_prompt: int, max_context: int, default: int | None = None) -> int:
    """Return how many tokens the answer may have in all, resumed ones included.

    Without `max_tokens`: `default`, at most what the context leaves. Raises BadRequest for a limit below 1 (below 0
    where the prompt is echoed) and ContextLengthExceeded where prompt and requested output do not fit `max_context`.
    """
    asked = request.sampling.max_tokens
    least = 0 if request.echo else 1
    if asked is not None and asked < least:
        raise BadRequest(f"max_tokens is {asked}; expected at least {least}", param="max_tokens")
    room = max_context - num_prompt
    if room < least:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens; this model takes {max_context} for prompt and answer together",
            param="messages" if isinstance(request.prompt, ChatPrompt) else "prompt",
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens and max_tokens asks for {asked}; this model takes {max_context} "
            f"together, so at most {room}",
            param="max_tokens",
        )
    return asked


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    # Written so that NaN is outside.
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name} is {value}; expected {low:g} to {high:g}", param=name)
