"""How models write tool calls and reasoning into their text, and the parsers that read it as it arrives."""

from sage_gateway.dialects.choosing import (
    GUIDED,
    NAMED,
    REASONING_FORMATS,
    TOOL_FORMATS,
    new_call_id,
    reasoning_parser,
    tool_parser,
)
from sage_gateway.dialects.pieces import (
    CallArguments,
    CallStarted,
    Content,
    NewCallId,
    Parser,
    Piece,
    Reasoning,
)
from sage_gateway.dialects.plain import FirstCallParser, PlainParser

__all__ = [
    "GUIDED",
    "NAMED",
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "CallArguments",
    "CallStarted",
    "Content",
    "FirstCallParser",
    "NewCallId",
    "Parser",
    "Piece",
    "PlainParser",
    "Reasoning",
    "new_call_id",
    "reasoning_parser",
    "tool_parser",
]
