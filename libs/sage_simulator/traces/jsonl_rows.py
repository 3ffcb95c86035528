"""JSON lines as typed rows; a line that does not fit is looked at again, field by field, for the message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from sage_simulator.mistakes import FileMistake, missing, wrong_value
from sage_simulator.text_files import Limits, read_bytes_lines
from sage_simulator.values import Rule

__all__ = ["MAX_ID", "id_list", "read_rows"]

MAX_ID: Final = 2**63 - 1
"""Largest id of a block or piece; what fits a signed and an unsigned 64-bit integer alike."""

R = TypeVar("R")


def read_rows(
    file: Path, kind: type[R], rules: Mapping[str, Rule[Any]], limits: Limits
) -> Iterator[tuple[int, R]]:
    """Yield (line number, row). `rules` say for each field of `kind` what is accepted; others are ignored.

    Raises FileMistake naming line and field. A field that `kind` has a default for may be missing.
    """
    decoder = msgspec.json.Decoder(kind)
    optional = {field.name for field in msgspec.structs.fields(kind) if not field.required}  # type: ignore[arg-type]
    for num_rows, (number, line) in enumerate(read_bytes_lines(file, limits), start=1):
        limits.check_rows(file, number, num_rows)
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
            yield number, _carefully(file, number, line, kind, rules, optional)
        if limits.head and num_rows >= limits.head:
            return


def id_list(max_ids: int) -> Rule[list[int]]:
    """Accept a list of ids."""

    def parse(value: object) -> list[int]:
        if not isinstance(value, list) or len(value) > max_ids:
            raise ValueError(value)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_ID:
                raise ValueError(value)
        return value

    return Rule(parse, f"a list of at most {max_ids} whole numbers from 0 to {MAX_ID}")


def _carefully(
    file: Path, number: int, line: bytes, kind: type[R], rules: Mapping[str, Rule[Any]], optional: set[str]
) -> R:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileMistake(file, number, f"the line is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise wrong_value(file, number, "the line", found, f"an object with {', '.join(rules)}")
    values = {}
    for field, rule in rules.items():
        if field not in found:
            if field in optional:
                continue
            raise missing(file, number, "the line", field, rule.accepted)
        try:
            values[field] = rule.parse(found[field])
        except (ValueError, OverflowError):
            raise wrong_value(file, number, field, found[field], rule.accepted) from None
    return kind(**values)
