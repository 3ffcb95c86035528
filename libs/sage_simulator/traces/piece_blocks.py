"""Chained block ids of prompts that are known as pieces (id, tokens): equal ids mean equal leading tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["Pieces", "chained_blocks", "mixed_id"]

Pieces = Sequence[tuple[int, int]]
"""(id, tokens) of each piece of a prompt, in order."""

_MASK: Final = 2**64 - 1


def chained_blocks(pieces: Pieces, block_tokens: int, num_tokens: int) -> list[int]:
    """Return one id for each whole block of `block_tokens` tokens in the first `num_tokens` of the pieces.

    The id depends on all pieces up to the block's end and on where each of them is cut: two prompts share their
    first k ids exactly when their first k blocks hold the same tokens of the same pieces.
    """
    ids: list[int] = []
    chain, filled, seen = 0, 0, 0
    for piece, tokens in pieces:
        taken = 0
        while taken < tokens and seen < num_tokens:
            step = min(tokens - taken, block_tokens - filled, num_tokens - seen)
            chain = mixed_id(mixed_id(chain, piece), taken * block_tokens + step)
            taken, filled, seen = taken + step, filled + step, seen + step
            if filled == block_tokens:
                ids.append(chain)
                filled = 0
    return ids


def mixed_id(chain: int, value: int) -> int:
    """Return a 64-bit id of the two: SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) over their sum."""
    mixed = (chain * 0x9E3779B97F4A7C15 + value + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
