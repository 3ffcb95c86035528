"""The parser of models that write nothing but the answer."""

from __future__ import annotations

from sage_gateway.dialects.pieces import CallArguments, CallStarted, Content, Parser, Piece

__all__ = ["FirstCallParser", "PlainParser"]


class PlainParser:
    """All text is content."""

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        return [Content(text)] if text else []

    def finish(self) -> list[Piece]:
        """See Parser."""
        return []


class FirstCallParser:
    """Gives out what `parser` finds but for every call after the first: `parallel_tool_calls` is false."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        return _without_later_calls(self._parser.push(text))

    def finish(self) -> list[Piece]:
        """See Parser."""
        return _without_later_calls(self._parser.finish())


def _without_later_calls(pieces: list[Piece]) -> list[Piece]:
    return [
        piece for piece in pieces if not (isinstance(piece, CallStarted | CallArguments) and piece.index > 0)
    ]
