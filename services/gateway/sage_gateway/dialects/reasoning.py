"""`<think>…</think>` before the answer, as DeepSeek, Qwen and most that came after them write it.

https://github.com/deepseek-ai/DeepSeek-R1
"""

from __future__ import annotations

from typing import Final

from sage_gateway.dialects.markers import held_back, trailing_space
from sage_gateway.dialects.pieces import Parser, Piece, Reasoning

__all__ = ["ThinkParser"]

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"
_MAX_SPACE: Final = 256
"""White space that may stand before the marker."""


class ThinkParser:
    """Gives reasoning out as such, and the text behind it to `answer`'s parser, without white space between them.

    The marker counts at the beginning of the text alone. `is_open`: the prompt opened it already, so the text begins
    inside; a model that opens it once more does no harm.
    """

    def __init__(self, answer: Parser, *, is_open: bool) -> None:
        self._answer = answer
        self._held = ""
        self._state = "start"
        self._is_open = is_open

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        if self._state == "answer":
            return self._answer.push(text)
        text = self._held + text
        self._held = ""
        if self._state == "start":
            rest = text.lstrip()
            is_at_start = len(text) - len(rest) <= _MAX_SPACE
            if is_at_start and len(rest) < len(_OPEN) and _OPEN.startswith(rest):
                self._held = text
                return []
            if is_at_start and rest.startswith(_OPEN):
                text, self._state = rest[len(_OPEN) :].lstrip("\n"), "opened"
            elif self._is_open:
                text, self._state = text.lstrip("\n"), "opened"
            else:
                self._state = "answer"
                return self._answer.push(text)
        if self._state == "opened":
            text = text.lstrip("\n")
            if not text:
                return []
            self._state = "inside"
        if self._state == "closed":
            return self._read_closed(text)
        return self._read_inside(text)

    def finish(self) -> list[Piece]:
        """See Parser."""
        held = self._held
        if self._state == "start" and not self._is_open and held:
            return self._answer.push(held) + self._answer.finish()
        pieces: list[Piece] = []
        if self._state in ("start", "inside") and held.strip():
            pieces.append(Reasoning(held.rstrip()))
        return pieces + self._answer.finish()

    def _read_inside(self, text: str) -> list[Piece]:
        end = text.find(_CLOSE)
        pieces: list[Piece] = []
        if end < 0:
            held = held_back(text, _CLOSE)
            held += trailing_space(text[: len(text) - held])
            self._held = text[len(text) - held :]
            if len(text) > held:
                pieces.append(Reasoning(text[: len(text) - held]))
            return pieces
        stop = end - trailing_space(text[:end])
        if stop:
            pieces.append(Reasoning(text[:stop]))
        self._state = "closed"
        return pieces + self._read_closed(text[end + len(_CLOSE) :])

    def _read_closed(self, text: str) -> list[Piece]:
        text = text.lstrip()
        if not text:
            return []
        self._state = "answer"
        return self._answer.push(text)
