"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as often as there are calls.

https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from typing import Final

from sage_gateway.dialects.json_calls import CallReader
from sage_gateway.dialects.markers import held_back, trailing_space
from sage_gateway.dialects.pieces import NewCallId, Piece, content

__all__ = ["HermesParser"]

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_STRAY: Final = " \t\r\n}]"
"""What models write between a call's object and its end marker: a brace too many."""


class HermesParser:
    """White space around calls is no content."""

    def __init__(self, new_id: NewCallId) -> None:
        self._new_id = new_id
        self._held = ""
        self._opening = ""
        self._reader: CallReader | None = None
        self._is_closing = False
        self._num_calls = 0

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        text = self._held + text
        self._held = ""
        pieces: list[Piece] = []
        while text:
            if self._reader is not None:
                text = self._read_call(text, pieces)
            elif self._is_closing:
                text = self._read_close(text)
            elif self._opening:
                text = self._read_opening(text, pieces)
            else:
                text = self._read_text(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._reader is not None:
            rest = self._reader.finish()
            return content(self._opening) + rest if rest else []
        if self._is_closing or (self._num_calls and not self._held.strip()):
            return []
        return content(self._opening + self._held)

    def _read_text(self, text: str, pieces: list[Piece]) -> str:
        start = text.find(_OPEN)
        if start >= 0:
            # Kept with the white space before it, in case that it turns out to open nothing.
            end = start - trailing_space(text[:start])
            pieces += content(text[:end])
            self._opening = text[end:start] + _OPEN
            return text[start + len(_OPEN) :]
        held = held_back(text, _OPEN)
        held += trailing_space(text[: len(text) - held])
        self._held = text[len(text) - held :]
        pieces += content(text[: len(text) - held])
        return ""

    def _read_opening(self, text: str, pieces: list[Piece]) -> str:
        """Between the marker and the object's brace."""
        rest = text.lstrip()
        self._opening += text[: len(text) - len(rest)]
        if not rest:
            return ""
        if rest[0] == "{":
            self._reader = CallReader(self._num_calls, self._new_id)
            return rest
        pieces += content(self._opening)
        self._opening = ""
        return rest

    def _read_call(self, text: str, pieces: list[Piece]) -> str:
        reader = self._reader
        assert reader is not None
        found, at = reader.push(text, 0)
        if reader.is_done:
            self._reader = None
            if reader.is_call:
                self._num_calls += 1
                self._is_closing = True
            else:
                pieces += content(self._opening)
            self._opening = ""
        pieces += found
        return text[at:]

    def _read_close(self, text: str) -> str:
        text = text.lstrip(_STRAY)
        if _CLOSE.startswith(text):
            self._held = text if text != _CLOSE else ""
            self._is_closing = text != _CLOSE
            return ""
        self._is_closing = False
        return text.removeprefix(_CLOSE)
