"""Log probabilities in the two shapes that OpenAI has for them: chat's and the older one of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from sage_wire.messages import Logprob, TokenLogprobs

__all__ = ["ChatLogprobs", "TextLogprobs", "TokenBody", "chat_logprobs", "text_logprobs"]

_LEAST: Final = -9999.0
"""What OpenAI says for a probability of zero, whose logarithm JSON cannot tell."""


class AlternativeBody(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a place. `bytes` is the token's UTF-8, which may be half a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenBody(msgspec.Struct, frozen=True):
    """A token of the answer, and the likeliest ones at its place."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[AlternativeBody]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a choice of chat."""

    content: list[TokenBody]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """`logprobs` of a choice of completions; lists of one length. The first token of a prompt has no probability."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


def chat_logprobs(tokens: Sequence[TokenLogprobs], *, as_ids: bool = False) -> list[TokenBody]:
    """Return `tokens` as chat shows them; `as_ids`: `token_id:N` in the place of their text."""
    return [
        TokenBody(
            _shown(token.chosen, as_ids=as_ids),
            _finite(token.chosen.logprob),
            _bytes(token.chosen),
            [
                AlternativeBody(_shown(top, as_ids=as_ids), _finite(top.logprob), _bytes(top))
                for top in token.top
            ],
        )
        for token in tokens
    ]


def text_logprobs(tokens: Sequence[TokenLogprobs], offset: int = 0, *, as_ids: bool = False) -> TextLogprobs:
    """Return `tokens` as completions show them; `offset` counts the characters of the choice before them.

    The chosen token is always the first of `top_logprobs`, which so may have one more than was asked for.
    """
    offsets, own, texts = [], [], []
    tops: list[dict[str, float] | None] = []
    for token in tokens:
        chosen = token.chosen
        text = _shown(chosen, as_ids=as_ids)
        offsets.append(offset)
        offset += len(chosen.text)
        texts.append(text)
        own.append(None if token.is_first else _finite(chosen.logprob))
        if token.is_first:
            tops.append(None)
            continue
        likeliest: dict[str, float] = {}
        for top in (chosen, *token.top):
            # Tokens may share a text; the chosen one keeps it, else the likelier.
            likeliest.setdefault(_shown(top, as_ids=as_ids), _finite(top.logprob))
        tops.append(likeliest)
    return TextLogprobs(offsets, own, texts, tops)


def _shown(token: Logprob, *, as_ids: bool) -> str:
    return f"token_id:{token.token_id}" if as_ids else token.text


def _bytes(token: Logprob) -> list[int]:
    return list(token.raw or token.text.encode())


def _finite(logprob: float) -> float:
    # `not >` also for what is not a number at all.
    return logprob if logprob > _LEAST else _LEAST
