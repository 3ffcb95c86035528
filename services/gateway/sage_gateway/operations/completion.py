"""`POST /v1/completions`: from prompts to works, several choices for each. https://platform.openai.com/docs/api-reference"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from sage_gateway.decoding import BodyDecoder, Unsupported
from sage_gateway.operation import Answer, Asked, Planned
from sage_gateway.operations.completion_answers import CompletionTerms, StreamedCompletion, WholeCompletion
from sage_gateway.operations.fields import (
    Count,
    GenerationFields,
    ServiceTier,
    TokenId,
    unsupported_generation,
)
from sage_gateway.operations.generation import GATHER_MS
from sage_gateway.operations.refusal import too_many, wrong
from sage_gateway.operations.sampling import read_structure, sampling_of, seeded, shown_tier
from sage_gateway.operations.serving import find_served, fingerprint
from sage_gateway.operations.structures import response_structure
from sage_telemetry import semconv
from sage_wire.messages import Generate, TextPrompt, TokenPrompt, Work

__all__ = ["MAX_PROMPTS", "CompletionBody", "CompletionOperation"]

MAX_PROMPTS: Final = 128
"""Choices of all prompts together have the same bound."""
_MAX_TOKENS: Final = 16
"""OpenAI's documented default; chat has none."""


_TokenIds = Annotated[list[TokenId], Meta(min_length=1)]


class CompletionBody(GenerationFields, frozen=True, kw_only=True):
    """Fields beyond those of all generated text. A prompt is text, token ids, or a list of either."""

    prompt: str | Annotated[list[str | TokenId | _TokenIds], Meta(min_length=1)]
    best_of: Count | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    service_tier: ServiceTier | None = None


COMPLETION_DECODER: Final = BodyDecoder(
    CompletionBody,
    frozenset({"add_special_tokens"}),
    unsupported_generation | {"suffix": Unsupported("text is not inserted")},
)


class CompletionOperation:
    """Implements `operation.Operation`."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = COMPLETION_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model, ("generate",))
        num_choices = body.n or 1
        if body.best_of is not None and body.best_of != num_choices:
            raise wrong("best_of", f"only best_of = n = {num_choices} is supported")
        max_tokens = _MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if max_tokens == 0 and not body.echo:
            raise wrong("max_tokens", "found 0, which needs echo = true")
        formatted = None if body.response_format is None else response_structure(body.response_format)
        structure = read_structure(body, formatted)
        sampling = sampling_of(body, max_tokens, body.logprobs)
        prompts = _prompts(body.prompt)
        if len(prompts) * num_choices > MAX_PROMPTS:
            raise too_many("n", len(prompts) * num_choices, MAX_PROMPTS, "choices of all prompts")
        works: list[Work] = [
            Generate(
                model=served.name,
                prompt=prompt,
                sampling=seeded(sampling, index),
                structure=structure,
                echo=bool(body.echo),
                gather_ms=0 if body.stream else GATHER_MS,
            )
            for prompt in prompts
            for index in range(num_choices)
        ]
        options = body.stream_options
        if options is not None and not body.stream:
            raise wrong("stream_options", "is allowed only with stream = true")
        includes_usage = options is not None and bool(options.include_usage)
        terms = CompletionTerms(
            asked.request_id,
            asked.created,
            served.name,
            fingerprint(served),
            shown_tier(body.service_tier),
            choices_per_prompt=num_choices,
            has_logprobs=body.logprobs is not None,
            has_token_ids=bool(body.return_token_ids),
            tokens_as_ids=bool(body.return_tokens_as_token_ids),
            includes_stop=bool(body.include_stop_str_in_output),
            includes_usage=includes_usage,
            continuous_usage=options is not None and includes_usage and bool(options.continuous_usage_stats),
        )
        answer: Answer = (
            StreamedCompletion(terms, len(works)) if body.stream else WholeCompletion(terms, len(works))
        )
        return Planned(
            semconv.OPERATION_TEXT_COMPLETION, served, works, answer, body.service_tier, decoded.num_ignored
        )


def _prompts(prompt: str | list[str | int | list[int]]) -> list[TextPrompt | TokenPrompt]:
    if isinstance(prompt, str):
        return [TextPrompt(text=prompt)]
    token_ids = [item for item in prompt if isinstance(item, int)]
    if len(token_ids) == len(prompt):
        return [TokenPrompt(token_ids=token_ids)]
    if len(prompt) > MAX_PROMPTS:
        raise too_many("prompt", len(prompt), MAX_PROMPTS, "prompts")
    prompts: list[TextPrompt | TokenPrompt] = []
    for item in prompt:
        if isinstance(item, str):
            prompts.append(TextPrompt(text=item))
        elif isinstance(item, list):
            prompts.append(TokenPrompt(token_ids=item))
    if token_ids or len({type(item) for item in prompts}) > 1:
        raise wrong("prompt", "mixes token ids and texts; expected one kind")
    return prompts
