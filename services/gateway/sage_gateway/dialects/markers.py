"""Looks for a marker in text that arrives in parts."""

from __future__ import annotations

from typing import Final

__all__ = ["held_back", "trailing_space"]

_MAX_SPACE: Final = 256


def held_back(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `marker`."""
    start = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while start >= 0:
        if marker.startswith(text[start:]):
            return len(text) - start
        start = text.find(marker[0], start + 1)
    return 0


def trailing_space(text: str) -> int:
    """Return how much white space at the end of `text` to hold back: a marker may follow, and it is no content then.

    Longer runs are text, so that a model that writes nothing else cannot make each part cost more than the one before.
    """
    end = text[-_MAX_SPACE:]
    return len(end) - len(end.rstrip())
