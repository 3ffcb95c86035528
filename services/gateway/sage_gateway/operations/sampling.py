"""From the fields of a body to the sampling and the structure that they ask for."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw

from sage_gateway.decoding import NULL
from sage_gateway.operations.fields import ID_DIGITS, MAX_SEED, MAX_TOKEN_ID, GenerationFields
from sage_gateway.operations.refusal import wrong
from sage_gateway.operations.structures import structure_of
from sage_wire.messages import Sampling, Structure, TokenBias

__all__ = ["read_structure", "sampling_of", "seeded", "shown_tier"]

_SMALLEST_TOP_P: Final = 1e-6
_MAX_KEYS_SHOWN: Final = 5


def sampling_of(body: GenerationFields, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """Return the sampling that a body asks for. Raises BadRequest and LimitExceeded naming what is wrong."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    bias: list[TokenBias] = []
    if body.logit_bias:
        bias = _logit_bias(body.logit_bias)
    if body.min_tokens and max_tokens is not None and body.min_tokens > max_tokens:
        raise wrong("min_tokens", f"found {body.min_tokens}, more than max_tokens = {max_tokens}")
    top_p, top_k = body.top_p, body.top_k
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        # OpenAI's range includes 0, which leaves only the likeliest token; engines ask for more than 0.
        top_p=None if top_p is None else max(top_p, _SMALLEST_TOP_P),
        stop=stop,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        # Both 0 and -1 are vLLM's words for no limit.
        top_k=top_k if top_k is not None and top_k > 0 else None,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=body.stop_token_ids or [],
        logit_bias=bias,
        logprobs=logprobs,
    )


def seeded(sampling: Sampling, index: int) -> Sampling:
    """Return the sampling of choice `index`: with a seed, each choice has its own, or all would be the same."""
    if sampling.seed is None or index == 0:
        return sampling
    seed = sampling.seed + index
    return msgspec.structs.replace(sampling, seed=seed if seed <= MAX_SEED else seed - 2**64)


def read_structure(body: GenerationFields, formatted: Structure | None) -> Structure | None:
    """Return what the text must look like, by `response_format` (already read) or vLLM's ways. Raises BadRequest."""
    own = body.structured_outputs
    words = (body.guided_regex, body.guided_choice, body.guided_grammar)
    if own is None and body.guided_json is NULL and words == (None, None, None):
        return formatted
    given: dict[str, Raw | str | list[str] | bool | None] = {
        "guided_json": body.guided_json,
        "guided_regex": body.guided_regex,
        "guided_choice": body.guided_choice,
        "guided_grammar": body.guided_grammar,
    }
    if own is not None:
        given |= {
            "structured_outputs.json": own.json,
            "structured_outputs.regex": own.regex,
            "structured_outputs.choice": own.choice,
            "structured_outputs.grammar": own.grammar,
            "structured_outputs.json_object": own.json_object,
        }
    structure = structure_of(given)
    if structure is not None and formatted is not None:
        raise wrong("response_format", "another structure of the output is given already")
    return structure or formatted


def shown_tier(tier: str | None) -> str | None:
    """Return a service tier as it is echoed: `auto` is a question, and `default` what becomes of it."""
    return "default" if tier == "auto" else tier


def _logit_bias(given: dict[str, float]) -> list[TokenBias]:
    bad = [key for key in given if re.fullmatch(ID_DIGITS, key) is None]
    if bad:
        shown = ", ".join(f"'{key[:40]}'" for key in bad[:_MAX_KEYS_SHOWN])
        raise wrong("logit_bias", f"found {shown}; expected token ids, integers from 0 to {MAX_TOKEN_ID}")
    return [TokenBias(token_id=int(key), bias=bias) for key, bias in given.items()]
