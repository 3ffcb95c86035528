"""JSON Schemas as clients send them: bounded and checked here, passed on as the text they are.

Whether a schema can be enforced is the engine's word, which compiles it, and bounds what that takes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Raw

from sage_core import BadRequest, LimitExceeded

__all__ = ["MAX_SCHEMA_BYTES", "embedded", "schema_text"]

MAX_SCHEMA_BYTES: Final = 65_536
MAX_SCHEMA_DEPTH: Final = 64
"""Levels of arrays and objects in a schema's own text; every level of properties takes two."""
MAX_SCHEMA_PROPERTIES: Final = 5_000
MAX_SCHEMA_CHOICES: Final = 1_000
"""Values of all `enum`s of a schema together. These two are OpenAI's bounds."""
MAX_SCHEMA_ITEMS: Final = 4_096
"""Of an array or object, wherever a schema bounds them; each may be a part of the grammar."""
MAX_SCHEMA_STRING: Final = 32_768
"""Characters of a string, wherever a schema bounds them."""
MAX_SCHEMA_PATTERN: Final = 8_192

_LIMITS: Final = {
    "minItems": MAX_SCHEMA_ITEMS,
    "maxItems": MAX_SCHEMA_ITEMS,
    "minProperties": MAX_SCHEMA_ITEMS,
    "maxProperties": MAX_SCHEMA_ITEMS,
    "minContains": MAX_SCHEMA_ITEMS,
    "maxContains": MAX_SCHEMA_ITEMS,
    "minLength": MAX_SCHEMA_STRING,
    "maxLength": MAX_SCHEMA_STRING,
}

_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_NAMED_SCHEMAS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_REF: Final = '"$ref"'


class _Bad(Exception):
    """A schema that cannot be meant, with the reason; `is_limit`: it is only too large."""

    def __init__(self, reason: str, *, is_limit: bool = False) -> None:
        super().__init__(reason)
        self.is_limit = is_limit


def schema_text(raw: Raw | bytes, param: str) -> str:
    """Return the schema as the text it was sent as.

    Raises BadRequest where it is no object or no schema, LimitExceeded where it is too large; `param` names it.
    """
    try:
        return _checked(bytes(raw))
    except _Bad as error:
        kind = LimitExceeded if error.is_limit else BadRequest
        raise kind(f"'{param}': {error}", param=param) from None


def embedded(schema: str, place: str) -> str:
    """Return `schema` fit to stand at the JSON pointer `place` of another: references to its own root lead there."""
    if _REF not in schema:
        return schema
    return msgspec.json.encode(_moved(msgspec.json.decode(schema), f"#{place}")).decode()


@lru_cache(maxsize=256)
def _checked(raw: bytes) -> str:
    if len(raw) > MAX_SCHEMA_BYTES:
        raise _Bad(f"the schema has {len(raw)} bytes; at most {MAX_SCHEMA_BYTES} are allowed", is_limit=True)
    try:
        text = raw.decode()
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise _Bad("is no valid JSON") from None
    if not isinstance(schema, dict):
        raise _Bad("must be a JSON object, a JSON Schema")
    _check(schema)
    return text


def _check(root: dict[str, Any]) -> None:
    """Walk the whole text, also what is no schema in it, for its size; and its schemas for what they say."""
    num_properties = num_choices = 0
    # Values with their depth, and whether they are schemas: a property may well be called "type".
    pending: list[tuple[Any, int, bool]] = [(root, 1, True)]
    while pending:
        value, depth, is_schema = pending.pop()
        if not isinstance(value, dict | list):
            continue
        if depth > MAX_SCHEMA_DEPTH:
            raise _Bad(f"the schema is nested more than {MAX_SCHEMA_DEPTH} levels deep", is_limit=True)
        if isinstance(value, list):
            pending += [(item, depth + 1, is_schema) for item in value]
            continue
        if not is_schema:
            pending += [(item, depth + 1, False) for item in value.values()]
            continue
        _check_type(value.get("type"))
        _check_limits(value)
        for key, item in value.items():
            if key in _NAMED_SCHEMAS and isinstance(item, dict):
                num_properties += len(item)
                pending += [(inner, depth + 2, True) for inner in item.values()]
            elif key in ("enum", "const", "default", "examples"):
                num_choices += len(item) if key == "enum" and isinstance(item, list) else 0
                pending.append((item, depth + 1, False))
            else:
                pending.append((item, depth + 1, True))
    if num_properties > MAX_SCHEMA_PROPERTIES:
        raise _Bad(
            f"the schema has {num_properties} properties; at most {MAX_SCHEMA_PROPERTIES} are allowed",
            is_limit=True,
        )
    if num_choices > MAX_SCHEMA_CHOICES:
        raise _Bad(
            f"the schema has {num_choices} enum values; at most {MAX_SCHEMA_CHOICES} are allowed",
            is_limit=True,
        )


def _check_type(value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if isinstance(name, str) and name not in _TYPES:
            raise _Bad(f"the schema has the unknown type '{name[:40]}'")


def _check_limits(schema: dict[str, Any]) -> None:
    for name in schema.keys() & _LIMITS.keys():
        value, limit = schema[name], _LIMITS[name]
        if isinstance(value, int | float) and value > limit:
            raise _Bad(f"the schema has {name} = {value:.4g}; at most {limit} is allowed", is_limit=True)
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_SCHEMA_PATTERN:
        raise _Bad(
            f"the schema has a pattern of {len(pattern)} characters; at most {MAX_SCHEMA_PATTERN} are allowed",
            is_limit=True,
        )


def _moved(value: Any, root: str) -> Any:
    if isinstance(value, list):
        return [_moved(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(item, root) for key, item in value.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = root + reference[1:]
    return moved
