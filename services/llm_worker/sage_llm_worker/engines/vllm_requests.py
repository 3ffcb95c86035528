"""Between a request and vLLM: its sampling parameters, and the log probabilities that come back. Needs vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_core import BadRequest
from sage_llm_worker.engines.vllm_structures import with_delivered
from sage_llm_worker.prompts import Prompt
from sage_llm_worker.vocabulary import ScoredToken
from sage_wire.messages import Generate

__all__ = ["sampling_params", "scored_token"]


def sampling_params(
    request: Generate,
    prompt: Prompt,
    defaults: Mapping[str, Any],
    *,
    limit: int,
    grammar: str | None,
    scores_prompt: bool,
) -> Any:
    """Return vLLM's `SamplingParams`. `defaults`: what the model's authors recommend; `grammar`: Lark.

    Raises BadRequest where vLLM finds a value out of range.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    sampling, num_resumed = request.sampling, len(prompt.resumed)
    seed = sampling.seed
    if seed is not None and num_resumed:
        # A seed starts vLLM's generator anew: the same draws must not come twice in one answer.
        seed += 7919 * num_resumed
    top_k = sampling.top_k if sampling.top_k is not None else defaults.get("top_k", 0)
    structured = (
        None if grammar is None else StructuredOutputsParams(grammar=with_delivered(grammar, prompt.resumed))
    )
    try:
        return SamplingParams(
            # A prompt that is only to be scored needs one token all the same.
            max_tokens=max(1, limit - num_resumed),
            # What a structure allows ends where the structure does.
            min_tokens=0 if grammar is not None else max(0, sampling.min_tokens - num_resumed),
            ignore_eos=sampling.ignore_eos and grammar is None,
            stop_token_ids=sampling.stop_token_ids,
            temperature=_first(sampling.temperature, defaults.get("temperature"), 1.0),
            top_p=_first(sampling.top_p, defaults.get("top_p"), 1.0),
            top_k=max(0, top_k),
            min_p=_first(sampling.min_p, defaults.get("min_p"), 0.0),
            repetition_penalty=_first(sampling.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias={bias.token_id: bias.bias for bias in sampling.logit_bias} or None,
            seed=seed,
            logprobs=sampling.logprobs,
            prompt_logprobs=sampling.logprobs if scores_prompt else None,
            structured_outputs=structured,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
    except ValueError as error:
        raise BadRequest(f"sampling parameters are out of range: {error}", param="sampling") from None


def scored_token(token_id: int, found: Mapping[int, Any], num_top: int) -> ScoredToken:
    """Return a token with what vLLM found at its place: its own log probability, and those of the likeliest."""
    likeliest = sorted(found.items(), key=lambda item: -item[1].logprob)[:num_top]
    return ScoredToken(
        token_id, found[token_id].logprob, [(other, entry.logprob) for other, entry in likeliest]
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
