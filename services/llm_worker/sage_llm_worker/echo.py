"""The prompt as the first pieces of an answer, for requests with `echo`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sage_wire.messages import TokenLogprobs, Tokens

__all__ = ["ECHO_TOKENS", "echo_pieces"]

ECHO_TOKENS: Final = 256
"""Tokens of one piece: with 20 log probabilities each, it stays far below what a bus message may have."""


def echo_pieces(
    text: str, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()
) -> Iterator[Tokens]:
    """Yield a prompt, always cut at the same places. All of its text is in the first piece."""
    for start in range(0, max(1, len(token_ids)), ECHO_TOKENS):
        part = slice(start, start + ECHO_TOKENS)
        ids = list(token_ids[part])
        yield Tokens(
            text="" if start else text,
            token_ids=ids,
            num_tokens=len(ids),
            logprobs=list(logprobs[part]),
            is_prompt=True,
        )
