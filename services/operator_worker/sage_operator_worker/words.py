"""From a user's question to a full-text query. Nothing a user types is ever read as query syntax."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MAX_TERMS", "match_expression"]

MAX_TERMS: Final = 64
"""Terms beyond this are ignored; each costs a scan of its postings."""

_WORD = re.compile(r"[^\W_]+")

_COMMON: Final = """
    a about am an and any are as at be been but by can could did do does for from had has have how i if in into is
    it its may me my no not of on or our shall should so some such than that the their them then there these they
    this those to was we were what when where which who whom why will with would you your
"""
_STOP_WORDS: Final = frozenset(_COMMON.split())


def match_expression(text: str) -> str | None:
    """Return an FTS5 expression that matches any word of `text`, or None where there is no word.

    Words of several parts (`max_payload`, `apt-get`) count again as a phrase, so exact mentions rank higher.
    Everything is quoted (https://sqlite.org/fts5.html section 3.1). Common English words are left out unless
    there are no others.
    """
    terms: dict[str, None] = {}
    common: dict[str, None] = {}
    for group in text.split():
        parts = _WORD.findall(group.lower())
        for part in parts:
            (common if part in _STOP_WORDS else terms).setdefault(f'"{part}"')
        if len(parts) > 1:
            terms.setdefault('"' + " ".join(parts) + '"')
    chosen = list(terms or common)[:MAX_TERMS]
    return " OR ".join(chosen) if chosen else None
