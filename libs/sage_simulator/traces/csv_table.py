"""CSV files as numpy columns, found by the names in the header; the slow path only looks for the mistake."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sage_simulator.mistakes import FileMistake, wrong_value
from sage_simulator.text_files import Limits, read_text_lines
from sage_simulator.values import Rule

__all__ = ["Column", "header_names", "label_column", "number_column", "read_columns", "whole_number_column"]

_CHUNK_ROWS: Final = 65_536
_DELIMITERS: Final = ",;\t"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column by its header's name, compared without case, blanks and punctuation.

    `convert` turns many cells into an array or raises ValueError; then `rule` finds the cell that is wrong, or takes
    what `convert` is too plain for. A column with a `default` may be missing, in a row or in the whole file.
    """

    name: str
    rule: Rule[Any]
    convert: Callable[[list[str]], Array]
    default: str | None = None


def whole_number_column(name: str, rule: Rule[int], low: int, high: int) -> Column:
    """Return a column of integers, int64."""

    def convert(cells: list[str]) -> Array:
        return _bounded(np.fromiter(map(int, cells), np.int64, len(cells)), low, high)

    return Column(name, rule, convert)


def number_column(name: str, rule: Rule[float], low: float, high: float) -> Column:
    """Return a column of numbers, float64."""

    def convert(cells: list[str]) -> Array:
        return _bounded(np.fromiter(map(float, cells), np.float64, len(cells)), low, high)

    return Column(name, rule, convert)


def label_column(name: str, *, default: str | None = None) -> Column:
    """Return a column of names, object dtype; bytes that are no UTF-8 become `?`."""

    def clean(cell: object) -> str:
        return str(cell).strip().encode("utf-8", "replace").decode()

    def convert(cells: list[str]) -> Array:
        return np.array([clean(cell) for cell in cells], dtype=object)

    return Column(name, Rule(clean, "text"), convert, default)


def header_names(line: str) -> frozenset[str]:
    """Return the names in a header line, in the form in which columns are compared."""
    return frozenset(_plain(name) for name in next(csv.reader([line], delimiter=_delimiter(line)), []))


def read_columns(file: Path, columns: list[Column], limits: Limits) -> dict[str, Array]:
    """Return one array per column, by the columns' names. Raises FileMistake naming line and column."""
    lines = iter(read_text_lines(file, limits))
    number, header = _header(file, lines)
    delimiter = _delimiter(header)
    cells = _rows(file, lines, number, delimiter)
    names = [_plain(name) for name in next(csv.reader([header], delimiter=delimiter))]
    places = {column.name: _place(file, number, names, column) for column in columns}
    parts: dict[str, list[Array]] = {column.name: [] for column in columns}
    num_rows = 0
    while chunk := list(islice(cells, _CHUNK_ROWS)):
        if limits.head:
            chunk = chunk[: limits.head - num_rows]
        num_rows += len(chunk)
        limits.check_rows(file, chunk[-1][0], num_rows)
        for column in columns:
            parts[column.name].append(_converted(file, chunk, column, places[column.name]))
        if limits.head and num_rows >= limits.head:
            break
    if num_rows == 0:
        raise FileMistake(file, number, "no row follows the header; expected at least one request")
    return {name: np.concatenate(found) for name, found in parts.items()}


def _header(file: Path, lines: Iterator[str]) -> tuple[int, str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            return number, line
    raise FileMistake(file, 0, "the file is empty; expected a header")


def _rows(file: Path, lines: Iterator[str], before: int, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise FileMistake(file, before + reader.line_num, f"the line is not CSV: {error}") from None
        if row and any(cell and not cell.isspace() for cell in row):
            yield before + reader.line_num, row


def _place(file: Path, line: int, names: list[str], column: Column) -> int | None:
    plain = _plain(column.name)
    if plain in names:
        return names.index(plain)
    if column.default is None:
        raise FileMistake(
            file,
            line,
            f"column {column.name!r} is missing; found {', '.join(names)[:200]}",
            param=column.name,
        )
    return None


def _converted(file: Path, chunk: list[tuple[int, list[str]]], column: Column, place: int | None) -> Array:
    default = column.default
    if place is None:
        return column.convert([default or ""] * len(chunk))
    try:
        cells = [row[place] for _, row in chunk]
        return column.convert(cells)
    except (ValueError, OverflowError, IndexError):
        return np.array([_cell(file, line, row, column, place) for line, row in chunk])


def _cell(file: Path, line: int, row: list[str], column: Column, place: int) -> Any:
    if place >= len(row):
        if column.default is not None:
            return column.default
        raise FileMistake(
            file, line, f"{column.name} is missing; expected {column.rule.accepted}", param=column.name
        )
    try:
        return column.rule.parse(row[place])
    except (ValueError, OverflowError):
        raise wrong_value(file, line, column.name, row[place], column.rule.accepted) from None


def _bounded(values: Array, low: float, high: float) -> Array:
    # NaN compares false with everything, so it is refused too.
    if not bool(np.all((values >= low) & (values <= high))):
        raise ValueError(values)
    return values


def _delimiter(header: str) -> str:
    return max(_DELIMITERS, key=header.count)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
