"""Which parser reads a model's text: by the formats that its worker announced, and by what the request allows."""

from __future__ import annotations

from typing import Final

from sage_core import new_id
from sage_gateway.dialects.guided import GuidedParser, NamedParser
from sage_gateway.dialects.hermes import HermesParser
from sage_gateway.dialects.llama import Llama3JsonParser
from sage_gateway.dialects.mistral import MistralParser
from sage_gateway.dialects.pieces import NewCallId, Parser
from sage_gateway.dialects.plain import PlainParser
from sage_gateway.dialects.pythonic import PythonicParser
from sage_gateway.dialects.reasoning import ThinkParser

__all__ = [
    "GUIDED",
    "NAMED",
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "new_call_id",
    "reasoning_parser",
    "tool_parser",
]

TOOL_FORMATS: Final = frozenset({"hermes", "mistral", "llama3_json", "pythonic"})
"""How models write calls on their own."""

GUIDED: Final = "guided"
NAMED: Final = "named"
"""How a grammar makes any model write calls: an array of them, or one function's arguments alone."""

REASONING_FORMATS: Final = frozenset({"think", "think_open"})
"""`think_open`: the chat template opens the marker, so the text begins inside."""

_LENGTH: Final = 24


def new_call_id() -> str:
    """Return a new id of a tool call, in OpenAI's form."""
    return f"call_{new_id(length=_LENGTH)}"


def tool_parser(format_: str, names: frozenset[str], make_id: NewCallId = new_call_id) -> Parser:
    """Return the parser of `format_`; `names` are the functions that may be called, one of them for NAMED."""
    match format_:
        case "hermes":
            return HermesParser(make_id)
        case "mistral":
            return MistralParser(make_id)
        case "llama3_json":
            return Llama3JsonParser(make_id, names)
        case "pythonic":
            return PythonicParser(make_id, names)
        case "guided":
            return GuidedParser(make_id)
        case "named":
            (name,) = names
            return NamedParser(name, make_id)
    return PlainParser()


def reasoning_parser(format_: str, answer: Parser, *, is_open: bool) -> Parser:
    """Return a parser of `format_` in front of `answer`'s; `is_open` False: the prompt certainly opened nothing."""
    if format_ not in REASONING_FORMATS:
        return answer
    return ThinkParser(answer, is_open=is_open and format_ == "think_open")
