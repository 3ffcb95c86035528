"""Reads tool calls written as JSON objects, `{"name": …, "arguments": {…}}`, while they are still being written.

Strings are understood, so a brace or an end marker inside an argument ends nothing. Each character is looked at once.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from sage_gateway.dialects.pieces import CallArguments, CallStarted, NewCallId, Piece, content

__all__ = ["CallReader", "ValueReader"]

_SPACE: Final = " \t\r\n"
_BETWEEN: Final = " \t\r\n,}"
_IN_STRING: Final = re.compile(r'["\\]')
_IN_CONTAINER: Final = re.compile(r'["\[\]{}]')
_SCALAR_END: Final = re.compile(r"[,\]}\s]")
_ARGUMENT_KEYS: Final = ("arguments", "parameters")


class ValueReader:
    """Finds where one JSON value ends. It balances brackets and strings; it does not check the grammar."""

    __slots__ = ("_depth", "_in_string", "_is_escaped", "_is_scalar", "_is_started")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._is_scalar = False
        self._is_started = False

    def feed(self, text: str, start: int) -> int:
        """Read on from `start`, the value's own first character at first; return where it ends, -1 for not yet."""
        at, end = start, len(text)
        while at < end:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            if self._in_string:
                found = _IN_STRING.search(text, at)
                if found is None:
                    return -1
                at = found.end()
                if found[0] == "\\":
                    self._is_escaped = True
                    continue
                self._in_string = False
                if self._depth == 0:
                    return at
                continue
            if self._is_scalar:
                found = _SCALAR_END.search(text, at)
                return -1 if found is None else found.start()
            if not self._is_started:
                self._is_started = True
                self._is_scalar = text[at] not in '"[{'
                if self._is_scalar:
                    continue
            found = _IN_CONTAINER.search(text, at)
            if found is None:
                return -1
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = True
                case "[" | "{":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth <= 0:
                        return at
        return -1


class CallReader:
    """Reads one object. `known` names, where given, are the only ones that make it a call; else it is content.

    A call starts once its name and the beginning of its arguments are known, or its object is complete.
    """

    def __init__(self, index: int, new_id: NewCallId, known: frozenset[str] | None = None) -> None:
        self._index = index
        self._new_id = new_id
        self._known = known
        self._raw: list[str] = []
        self._name: str | None = None
        self._is_refused = False
        self._early: list[str] = []
        self._has_arguments = False
        self._expects = "{"
        self._key = ""
        self._value: ValueReader | None = None
        self._is_streamed = False
        self._parts: list[str] = []
        self.is_call = False
        self.is_done = False

    def push(self, text: str, start: int) -> tuple[list[Piece], int]:
        """Read on from `start`; return the pieces, and where reading stopped: behind the object, or at the end."""
        pieces: list[Piece] = []
        at, end = start, len(text)
        while at < end and not self.is_done:
            if self._value is not None or self._is_at_value(text[at]):
                at = self._read_value(text, at, pieces)
            else:
                at = self._read_between(text[at], at)
        if not self.is_call:
            self._raw.append(text[start:at])
        if self.is_done:
            pieces += self._close()
        return pieces, at

    def finish(self) -> list[Piece]:
        """Return what the text up to now, an incomplete object, is: a call cut short, or content."""
        return [] if self.is_call else content("".join(self._raw))

    def _is_at_value(self, character: str) -> bool:
        """True where a key or a value begins with `character`."""
        if self._expects == "key":
            return character == '"'
        return self._expects == "value" and character not in _BETWEEN

    def _read_between(self, character: str, at: int) -> int:
        """Read one character outside keys and values; what is no object ends at its brace all the same."""
        if character in _SPACE:
            return at + 1
        match self._expects:
            case "{":
                self._expects = "key"
            case ":":
                self._expects = "value" if character == ":" else "key"
            case _:
                self._expects = "key"
                self.is_done = character == "}"
        return at + 1

    def _read_value(self, text: str, at: int, pieces: list[Piece]) -> int:
        if self._value is None:
            self._value = ValueReader()
            # Arguments are passed on as they are written; a string of JSON is unpacked at its end.
            self._is_streamed = (
                self._expects == "value"
                and self._key in _ARGUMENT_KEYS
                and not self._has_arguments
                and text[at] == "{"
            )
        end = self._value.feed(text, at)
        part = text[at:] if end < 0 else text[at:end]
        if self._is_streamed:
            self._add_arguments(part, pieces)
        else:
            self._parts.append(part)
        if end < 0:
            return len(text)
        self._value = None
        if self._expects == "key":
            self._key, self._expects = _string("".join(self._parts)) or "", ":"
        else:
            if not self._is_streamed:
                self._end_value("".join(self._parts), pieces)
            self._expects = "key"
        self._parts.clear()
        return end

    def _end_value(self, value: str, pieces: list[Piece]) -> None:
        if self._key == "name" and self._name is None:
            self._name = _string(value)
            self._is_refused = self._name is None or (
                self._known is not None and self._name not in self._known
            )
            if self._has_arguments:
                self._start(pieces)
        elif self._key in _ARGUMENT_KEYS and not self._has_arguments:
            text = _string(value)
            self._add_arguments("{}" if value == "null" else value if text is None else text, pieces)

    def _add_arguments(self, text: str, pieces: list[Piece]) -> None:
        self._has_arguments = True
        if self._name is None:
            self._early.append(text)
        elif not self._is_refused:
            self._start(pieces)
            if text:
                pieces.append(CallArguments(self._index, text))

    def _start(self, pieces: list[Piece]) -> None:
        if self.is_call or self._is_refused or self._name is None:
            return
        self.is_call = True
        self._raw.clear()
        pieces.append(CallStarted(self._index, self._new_id(), self._name))
        if any(self._early):
            pieces.append(CallArguments(self._index, "".join(self._early)))

    def _close(self) -> list[Piece]:
        if self.is_call:
            return []
        # With known names the object must also bring arguments: {"name": …} alone is too common an answer.
        if self._name is None or self._is_refused or self._known is not None:
            return content("".join(self._raw))
        pieces: list[Piece] = []
        self._add_arguments("{}", pieces)
        return pieces


def _string(value: str) -> str | None:
    """Return what the JSON string `value` says, None where it is none."""
    try:
        return msgspec.json.decode(value, type=str)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
