"""Calls that a grammar enforces: the text is an array of `{"name": …, "parameters": {…}}`, or one call's arguments."""

from __future__ import annotations

from sage_gateway.dialects.json_list import CallListReader
from sage_gateway.dialects.pieces import CallArguments, CallStarted, NewCallId, Piece, content

__all__ = ["GuidedParser", "NamedParser"]


class GuidedParser:
    """An array is calls; whatever begins otherwise is content (the answer, where a grammar leaves the choice)."""

    def __init__(self, new_id: NewCallId) -> None:
        self._calls = CallListReader(new_id)
        self._state = "start"
        self._blanks: list[str] = []

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        if self._state == "start":
            rest = text.lstrip()
            if not rest:
                self._blanks.append(text)
                return []
            if rest[0] == "[":
                self._state, text = "calls", rest[1:]
            else:
                self._state, text = "text", "".join(self._blanks) + text
            self._blanks.clear()
        if self._state == "text":
            return content(text)
        return self._calls.push(text, 0)[0]

    def finish(self) -> list[Piece]:
        """See Parser."""
        return content("".join(self._blanks)) + self._calls.finish()


class NamedParser:
    """The whole text is the arguments of one call of `name`."""

    def __init__(self, name: str, new_id: NewCallId) -> None:
        self._started: CallStarted | None = CallStarted(0, new_id(), name)

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = []
        if self._started is not None:
            text = text.lstrip()
            if not text:
                return []
            pieces.append(self._started)
            self._started = None
        if text:
            pieces.append(CallArguments(0, text))
        return pieces

    def finish(self) -> list[Piece]:
        """See Parser."""
        return [] if self._started is None else [self._started]
