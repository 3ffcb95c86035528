"""Cut a big document into parts that each fit a job: the passages and vectors of one source travel together."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from sage_cli.documents import FoundDocument
from sage_wire.messages import Document

__all__ = ["MAX_PART_CHARS", "Part", "part_sources", "parts_of"]

MAX_PART_CHARS = 200_000
"""With vectors of 4096 numbers such a part still fits the 7 MiB of one index request."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is sent of a document: all of it, or one of its `num_parts` parts."""

    document: Document
    found: FoundDocument
    num_parts: int = 1


def part_sources(source: str, num_parts: int) -> list[str]:
    """Return the sources of a document's parts: `big.txt`, `big.txt#2`, …"""
    return [source if number == 1 else f"{source}#{number}" for number in range(1, num_parts + 1)]


def parts_of(found: FoundDocument) -> list[Part]:
    """Cut at the ends of lines, or of words, or anywhere, into parts of at most 200,000 characters with text."""
    texts: list[str] = []
    rest = found.document.text
    while len(rest) > MAX_PART_CHARS:
        cut = _last_break(rest)
        texts.append(rest[:cut])
        rest = rest[cut:].lstrip()
    if rest or not texts:
        texts.append(rest)
    sources = part_sources(found.document.source, len(texts))
    return [
        Part(msgspec.structs.replace(found.document, source=source, text=text), found, len(texts))
        for source, text in zip(sources, texts, strict=True)
    ]


def _last_break(text: str) -> int:
    """Return where the first part of `text` ends: in its second half, so that parts stay few."""
    for separator in ("\n\n", "\n", " "):
        cut = text.rfind(separator, MAX_PART_CHARS // 2, MAX_PART_CHARS)
        if cut > 0:
            return cut + len(separator)
    return MAX_PART_CHARS
