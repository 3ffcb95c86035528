"""What the text must look like: OpenAI's `response_format`, and vLLM's ways of saying more."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw, field

from sage_gateway.decoding import RawObject, absent, is_null
from sage_gateway.operations.refusal import missing, too_many, wrong
from sage_gateway.operations.schemas import schema_text
from sage_wire.messages import Grammar, JsonObject, JsonSchema, OneOf, Pattern, Structure

__all__ = [
    "Choices",
    "FunctionName",
    "GrammarText",
    "PatternText",
    "ResponseFormat",
    "SchemaFormat",
    "StructuredOutputs",
    "response_structure",
    "structure_of",
]

MAX_OPTIONS: Final = 1_000
MAX_PATTERN_CHARS: Final = 8_192
MAX_GRAMMAR_CHARS: Final = 65_536
_MAX_OPTION_CHARS: Final = 65_536

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")

FunctionName = Annotated[str, Meta(extra_json_schema={"pattern": "^[a-zA-Z0-9_-]{1,64}$"})]
"""Of functions and schemas; checked where it is used, so that the message says more than a pattern."""

PatternText = Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN_CHARS)]
GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_OPTIONS)]


class SchemaFormat(msgspec.Struct, frozen=True):
    """The `json_schema` of a response format. It is enforced whether `strict` or not."""

    name: FunctionName
    schema: RawObject = field(default_factory=absent)
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """`json_schema` is needed with its type, and means nothing with others."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's `structured_outputs`: one of these."""

    json: Raw = field(default_factory=absent)
    regex: PatternText | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    json_object: bool | None = None


def response_structure(given: ResponseFormat) -> Structure | None:
    """Return what a `response_format` asks for, None for plain text. Raises BadRequest naming what is wrong."""
    match given.type:
        case "text":
            return None
        case "json_object":
            return JsonObject()
        case "json_schema":
            if given.json_schema is None:
                raise missing("response_format.json_schema")
            return schema_structure(given.json_schema, "response_format.json_schema")


def schema_structure(given: SchemaFormat, param: str) -> Structure:
    """Return the structure of a named schema. Raises BadRequest naming fields below `param`."""
    if _NAME.fullmatch(given.name) is None:
        raise wrong(f"{param}.name", "expected 1 to 64 letters, digits, underscores and dashes")
    if is_null(given.schema):
        raise missing(f"{param}.schema")
    return JsonSchema(schema=schema_text(given.schema, f"{param}.schema"))


def structure_of(given: dict[str, Raw | str | list[str] | bool | None]) -> Structure | None:
    """Return the one structure in `given`, which maps param names to values.

    A name ends with its kind: json, regex, choice, grammar or json_object. Raises BadRequest for more than one.
    """
    found = [(param, value) for param, value in given.items() if _is_given(value)]
    if not found:
        return None
    if len(found) > 1:
        raise wrong(found[1][0], f"{found[0][0]} is given already; an answer has one structure")
    param, value = found[0]
    match value:
        case Raw():
            return JsonSchema(schema=schema_text(_unquoted(value), param))
        case list():
            num_chars = sum(map(len, value))
            if num_chars > _MAX_OPTION_CHARS:
                raise too_many(param, num_chars, _MAX_OPTION_CHARS, "characters")
            return OneOf(options=value)
        case str() if param.endswith("regex"):
            return Pattern(regex=value)
        case str():
            return Grammar(ebnf=value)
    return JsonObject()


def _is_given(value: Raw | str | list[str] | bool | None) -> bool:
    if isinstance(value, Raw):
        return not is_null(value)
    return value is not None and value is not False


def _unquoted(raw: Raw) -> bytes:
    """Return the schema in `raw`, which may also be a string that holds one."""
    text = bytes(raw)
    return msgspec.json.decode(text, type=str).encode() if text.startswith(b'"') else text
