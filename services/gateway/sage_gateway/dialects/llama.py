"""Llama 3: the whole answer is `{"name": …, "parameters": {…}}`, or several with `;` between them.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
"""

from __future__ import annotations

from typing import Final

from sage_gateway.dialects.json_calls import CallReader
from sage_gateway.dialects.pieces import NewCallId, Piece, content

__all__ = ["Llama3JsonParser"]

_TAG: Final = "<|python_tag|>"
_MAX_SPACE: Final = 256
_BETWEEN: Final = " \t\r\n;,"


class Llama3JsonParser:
    """An object is a call where it names one of `known` functions and brings arguments; else it is content."""

    def __init__(self, new_id: NewCallId, known: frozenset[str]) -> None:
        self._new_id = new_id
        self._known = known
        self._state = "start"
        self._held = ""
        self._reader: CallReader | None = None
        self._num_calls = 0

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        text = self._held + text
        self._held = ""
        pieces: list[Piece] = []
        while text:
            match self._state:
                case "start":
                    text = self._read_start(text)
                case "call":
                    text = self._read_call(text, pieces)
                case "between":
                    text = self._read_between(text)
                case _:
                    pieces += content(text)
                    text = ""
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._state == "call":
            assert self._reader is not None
            return content(self._held) + self._reader.finish()
        return [] if self._state == "between" else content(self._held)

    def _read_start(self, text: str) -> str:
        rest = text.lstrip()
        is_at_start = len(text) - len(rest) <= _MAX_SPACE
        if is_at_start and len(rest) < len(_TAG) and _TAG.startswith(rest):
            self._held = text
            return ""
        if is_at_start and rest.startswith(_TAG):
            self._state = "between"
            return rest[len(_TAG) :]
        if is_at_start and rest.startswith("{"):
            self._open_call()
            return rest
        self._state = "text"
        return text

    def _open_call(self) -> None:
        self._state = "call"
        self._reader = CallReader(self._num_calls, self._new_id, self._known)

    def _read_call(self, text: str, pieces: list[Piece]) -> str:
        assert self._reader is not None
        found, at = self._reader.push(text, 0)
        pieces += found
        if self._reader.is_done:
            self._num_calls += self._reader.is_call
            self._state = "between" if self._reader.is_call else "text"
        return text[at:]

    def _read_between(self, text: str) -> str:
        text = text.lstrip(_BETWEEN)
        if text.startswith("{"):
            self._open_call()
        elif text:
            self._state = "text"
        return text
