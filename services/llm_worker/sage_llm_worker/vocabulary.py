"""The tokens of a Hugging Face tokenizer as bytes: what log probabilities and structures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sage_telemetry import get_logger
from sage_wire.messages import Logprob, TokenLogprobs

if TYPE_CHECKING:
    from llguidance import LLTokenizer

__all__ = ["ScoredToken", "Vocabulary"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token, its log probability, and the likeliest tokens at its place with theirs, likeliest first."""

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()


class Vocabulary:
    """Safe to use from any thread: it holds a copy of what it needs of the tokenizer."""

    def __init__(self, tokenizer: Any, *, vocab_size: int, eos_ids: Sequence[int]) -> None:
        """`vocab_size`: of the model's logits. Takes up to a second for 200,000 tokens."""
        self.matching: LLTokenizer | None = None
        """What structures are compiled for; None for tokenizers that llguidance cannot read (those without Rust)."""
        try:
            from llguidance.hf import from_tokenizer

            size = max(vocab_size, len(tokenizer))
            self.matching = from_tokenizer(tokenizer, n_vocab=size, eos_token=list(eos_ids) or None)
        except (ValueError, ImportError) as error:
            get_logger().warning("structures_unavailable", reason=str(error))
        self._tokenizer = tokenizer
        self._texts: dict[int, tuple[str, bytes]] = {}

    def token_logprobs(self, scored: ScoredToken) -> TokenLogprobs:
        """Return what is told of a token."""
        return TokenLogprobs(
            chosen=self._logprob(scored.token_id, scored.logprob),
            top=[self._logprob(token_id, value) for token_id, value in scored.top],
        )

    def first_of_prompt(self, token_id: int) -> TokenLogprobs:
        """Return what is told of a token that nothing came before."""
        return TokenLogprobs(chosen=self._logprob(token_id, 0.0), is_first=True)

    def _logprob(self, token_id: int, value: float) -> Logprob:
        text, raw = self._texts.get(token_id) or self._read(token_id)
        return Logprob(text=text, logprob=value, token_id=token_id, raw=raw)

    def _read(self, token_id: int) -> tuple[str, bytes]:
        """Return a token's text, and its bytes where they are not that text's."""
        if self.matching is None:
            text, raw = str(self._tokenizer.decode([token_id])), b""
        else:
            data = self.matching.decode_bytes([token_id])
            text = data.decode("utf-8", "replace")
            raw = b"" if text.encode() == data else data
        self._texts[token_id] = text, raw
        return text, raw
