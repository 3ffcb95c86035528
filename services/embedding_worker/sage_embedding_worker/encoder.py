"""The seam between the worker and what turns text into numbers. Encoders know no bus, no batching and no limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["CrossEncoder", "Encoder", "Floats", "Text", "TextTokenizer"]

Floats = npt.NDArray[np.float32]

Text: TypeAlias = str | tuple[int, ...]
"""What is embedded: text, or the ids of one, special tokens included."""


class TextTokenizer(Protocol):
    """A model's tokenizer. Used in one thread, which is not the one that computes."""

    vocab_size: int
    """Ids are below this."""

    def tokenize(self, text: str, *, adds_special_tokens: bool) -> list[int]:
        """Return the ids of a text, uncut."""
        ...

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        """Return the vocabulary's own spelling of each id."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        ...


class Encoder(TextTokenizer, Protocol):
    """Embeds texts one by one (a bi-encoder). Tokens are counted in one thread while another computes."""

    name: str
    dim: int
    max_tokens: int
    """Tokens the model reads of one text, special tokens included; the rest is cut off."""

    def count_tokens(self, texts: Sequence[Text]) -> list[int]:
        """Return the length of each text in tokens, special tokens included, before anything is cut off."""
        ...

    def embed(self, texts: Sequence[Text]) -> Floats:
        """Return float32 vectors, shape (len(texts), dim), L2-normalised. All texts form one padded batch."""
        ...


class CrossEncoder(TextTokenizer, Protocol):
    """Reads a query and a document together and says how well they match. Threads as for `Encoder`."""

    name: str
    max_tokens: int
    """Tokens the model reads of one pair, special tokens included; the document's end is cut off."""

    def count_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Return the length of each (query, document) in tokens, special tokens included, uncut."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Return one float32 per (query, document), higher is better. All pairs form one padded batch."""
        ...
