"""Mistral: `[TOOL_CALLS]` before a JSON array of calls, or before each `name{…}` since their eleventh tokenizer.

https://github.com/mistralai/mistral-common
"""

from __future__ import annotations

import re
from typing import Final

from sage_gateway.dialects.json_calls import CallReader, ValueReader
from sage_gateway.dialects.json_list import CallListReader
from sage_gateway.dialects.markers import held_back, trailing_space
from sage_gateway.dialects.pieces import CallArguments, CallStarted, NewCallId, Piece, content

__all__ = ["MistralParser"]

_OPEN: Final = "[TOOL_CALLS]"
_HEAD: Final = re.compile(
    r"\s*(?P<name>[a-zA-Z0-9_.-]{1,64})\s*(?:\[CALL_ID\]\s*[a-zA-Z0-9_-]+\s*)?(?:\[ARGS\]\s*)?(?=\{)"
)
"""What stands before the arguments. The model's own call id is left out: ours are unique across answers."""
_MAX_HEAD: Final = 256


class MistralParser:
    """Calls come last; text between and behind them is content."""

    def __init__(self, new_id: NewCallId) -> None:
        self._new_id = new_id
        self._state = "text"
        self._held = ""
        self._num_calls = 0
        self._list: CallListReader | None = None
        self._call: CallReader | None = None
        self._arguments = ValueReader()

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        text = self._held + text
        self._held = ""
        pieces: list[Piece] = []
        while text:
            match self._state:
                case "text":
                    text = self._read_text(text, pieces)
                case "head":
                    text = self._read_head(text, pieces)
                case "list":
                    text = self._read_list(text, pieces)
                case "object":
                    text = self._read_object(text, pieces)
                case _:
                    text = self._read_arguments(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        match self._state:
            case "list":
                assert self._list is not None
                return self._list.finish()
            case "object":
                assert self._call is not None
                return self._call.finish()
            case "head":
                return content(_OPEN + self._held)
            case "arguments":
                return []
        return [] if self._num_calls and not self._held.strip() else content(self._held)

    def _read_text(self, text: str, pieces: list[Piece]) -> str:
        start = text.find(_OPEN)
        if start >= 0:
            pieces += content(text[: start - trailing_space(text[:start])])
            self._state = "head"
            return text[start + len(_OPEN) :]
        held = held_back(text, _OPEN)
        held += trailing_space(text[: len(text) - held])
        self._held = text[len(text) - held :]
        pieces += content(text[: len(text) - held])
        return ""

    def _read_head(self, text: str, pieces: list[Piece]) -> str:
        rest = text.lstrip()
        is_near = len(text) - len(rest) <= _MAX_HEAD
        if is_near and rest.startswith("["):
            self._state, self._list = "list", CallListReader(self._new_id, self._num_calls)
            return rest[1:]
        if is_near and rest.startswith("{"):
            self._state, self._call = "object", CallReader(self._num_calls, self._new_id)
            return rest
        found = _HEAD.match(text)
        if found is not None and found.end() <= _MAX_HEAD:
            pieces.append(CallStarted(self._num_calls, self._new_id(), found["name"]))
            self._state, self._arguments = "arguments", ValueReader()
            return text[found.end() :]
        if "{" in text or len(text) > _MAX_HEAD:
            self._state = "text"
            pieces += content(_OPEN)
            return text
        self._held = text
        return ""

    def _read_list(self, text: str, pieces: list[Piece]) -> str:
        assert self._list is not None
        found, at = self._list.push(text, 0)
        pieces += found
        if self._list.is_done:
            self._num_calls, self._state = self._list.num_calls, "text"
        return text[at:]

    def _read_object(self, text: str, pieces: list[Piece]) -> str:
        assert self._call is not None
        found, at = self._call.push(text, 0)
        pieces += found
        if self._call.is_done:
            self._num_calls += self._call.is_call
            self._state = "text"
        return text[at:]

    def _read_arguments(self, text: str, pieces: list[Piece]) -> str:
        end = self._arguments.feed(text, 0)
        part = text if end < 0 else text[:end]
        pieces.append(CallArguments(self._num_calls, part))
        if end < 0:
            return ""
        self._num_calls += 1
        self._state = "text"
        return text[end:]
