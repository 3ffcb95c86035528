"""Reads a JSON array of calls, `[{"name": …, "arguments": {…}}, …]`."""

from __future__ import annotations

from sage_gateway.dialects.json_calls import CallReader
from sage_gateway.dialects.pieces import NewCallId, Piece

__all__ = ["CallListReader"]


class CallListReader:
    """Begins behind the opening bracket. Objects that are no calls are content."""

    def __init__(self, new_id: NewCallId, first_index: int = 0) -> None:
        self._new_id = new_id
        self._reader: CallReader | None = None
        self.num_calls = first_index
        self.is_done = False

    def push(self, text: str, start: int) -> tuple[list[Piece], int]:
        """Read on from `start`; return the pieces, and where reading stopped: behind the bracket, or at the end."""
        pieces: list[Piece] = []
        at = start
        while at < len(text) and not self.is_done:
            if self._reader is not None:
                found, at = self._reader.push(text, at)
                pieces += found
                if self._reader.is_done:
                    self.num_calls += self._reader.is_call
                    self._reader = None
                continue
            if text[at] == "{":
                self._reader = CallReader(self.num_calls, self._new_id)
                continue
            self.is_done = text[at] == "]"
            at += 1
        return pieces, at

    def finish(self) -> list[Piece]:
        """Return what an object that was cut short is."""
        return [] if self._reader is None else self._reader.finish()
