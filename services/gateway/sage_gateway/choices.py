"""The values that a field of a body accepts, for the message about one that it does not."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec
from msgspec import inspect

__all__ = ["accepted_values"]

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


@lru_cache(maxsize=64)
def accepted_values(kind: type[msgspec.Struct], path: str) -> tuple[str, ...]:
    """Return the literals accepted at `path` of `kind`, e.g. `messages[0].role`, sorted; empty where any text is."""
    types: list[inspect.Type] = [inspect.type_info(kind)]
    for step in _STEP.findall(path):
        types = [inner for outer in types for inner in _inner(outer, step)]
    found = [value for each in _flat(types) if isinstance(each, inspect.LiteralType) for value in each.values]
    return tuple(str(value) for value in found)


def _inner(outer: inspect.Type, step: str) -> list[inspect.Type]:
    found: list[inspect.Type] = []
    for each in _flat([outer]):
        if isinstance(each, inspect.StructType):
            found += [field.type for field in each.fields if field.encode_name == step]
        elif isinstance(each, inspect.ListType):
            found.append(each.item_type)
        elif isinstance(each, inspect.DictType):
            found.append(each.value_type)
    return found


def _flat(types: list[inspect.Type]) -> list[inspect.Type]:
    found: list[inspect.Type] = []
    for each in types:
        if isinstance(each, inspect.UnionType):
            found += _flat(list(each.types))
        elif isinstance(each, inspect.Metadata):
            found += _flat([each.type])
        else:
            found.append(each)
    return found
