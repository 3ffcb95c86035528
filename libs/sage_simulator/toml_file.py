"""TOML files whose mistakes have a line: what `tomllib` reads, and where each key of it stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sage_simulator.mistakes import FileMistake, missing, unknown_key, wrong_value
from sage_simulator.values import Rule

__all__ = ["Key", "Table", "load_toml"]

_MAX_BYTES: Final = 4 * 2**20
_HEADER: Final = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?")
_ASSIGNMENT: Final = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_NAME: Final = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")

_Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table: what it accepts, and its value where it is not given; `...`: it must be."""

    rule: Rule[Any]
    default: Any = ...


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a file, with the way to the lines of its keys. `where` names it in messages, e.g. [[group]]."""

    file: Path
    where: str
    values: Mapping[str, Any]
    path: _Path
    lines: Mapping[_Path, int]

    def line(self, *keys: str | int) -> int:
        """Return the line of a key below this table; the nearest known one where it has none of its own."""
        path = self.path + keys
        while path not in self.lines:
            if not path:
                return 1
            path = path[:-1]
        return self.lines[path]

    def read(self, keys: Mapping[str, Key], tables: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return a value for each of `keys`. `tables`: further keys that hold tables, which others read.

        Raises FileMistake for unknown keys, missing ones and values that are not accepted.
        """
        for name in self.values:
            if name not in keys and name not in (tables or {}):
                raise unknown_key(self.file, self.line(name), self.where, name, [*keys, *(tables or {})])
        found = {}
        for name, key in keys.items():
            if name in self.values:
                found[name] = self.value(name, key.rule)
            elif key.default is ...:
                raise missing(self.file, self.line(), self.where, name, key.rule.accepted)
            else:
                found[name] = key.default
        return found

    def value(self, name: str, rule: Rule[Any]) -> Any:
        """Return what the key `name` holds. Raises FileMistake where `rule` does not accept it."""
        try:
            return rule.parse(self.values[name])
        except (ValueError, OverflowError, TypeError):
            raise wrong_value(self.file, self.line(name), name, self.values[name], rule.accepted) from None

    def table(self, name: str) -> Table:
        """Return the table below `name`, empty where there is none."""
        found = self.values.get(name, {})
        if not isinstance(found, dict):
            raise wrong_value(self.file, self.line(name), name, found, f"a table [{name}]")
        return Table(self.file, f"[{name}]", found, (*self.path, name), self.lines)

    def named_tables(self, name: str) -> dict[str, Table]:
        """Return the tables [name.x], by x."""
        found = self.table(name)
        result = {}
        for key, values in found.values.items():
            if not isinstance(values, dict):
                raise wrong_value(
                    self.file, found.line(key), f"{name}.{key}", values, f"a table [{name}.{key}]"
                )
            result[key] = Table(self.file, f"[{name}.{key}]", values, (*found.path, key), self.lines)
        return result

    def tables(self, name: str) -> list[Table]:
        """Return the tables [[name]], in order."""
        found = self.values.get(name, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise wrong_value(self.file, self.line(name), name, found, f"tables [[{name}]]")
        return [
            Table(self.file, f"[[{name}]]", values, (*self.path, name, number), self.lines)
            for number, values in enumerate(found)
        ]


def load_toml(file: Path) -> Table:
    """Return the file's top table. Raises FileMistake where it cannot be read or is not TOML."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise FileMistake(file, 0, f"the file is larger than {_MAX_BYTES} bytes")
        text = file.read_bytes().decode("utf-8-sig")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise FileMistake(file, 0, "does not exist; expected a TOML file") from None
    except OSError as error:
        raise FileMistake(file, 0, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise FileMistake(file, 0, "the file is not UTF-8; expected TOML") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        match = re.search(r"\s*\(at line (\d+), column (\d+)\)$", str(error))
        line = int(match[1]) if match else 0
        reason = str(error)[: match.start()] if match else str(error)
        raise FileMistake(file, line, f"the file is not TOML: {reason}") from None
    return Table(file, "the file", values, (), _lines_of(text))


def _lines_of(text: str) -> dict[_Path, int]:
    """Return the lines of headers and keys. Keys inside inline tables have their table's line."""
    lines: dict[_Path, int] = {(): 1}
    counts: dict[_Path, int] = {}
    table: _Path = ()
    depth, quote = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not depth and not quote:
            header = _HEADER.fullmatch(line)
            if header:
                table = _entered(counts, _names(header[2]), is_array=header[1] == "[[")
                lines.setdefault(table, number)
                for length in range(1, len(table)):
                    lines.setdefault(table[:length], number)
                continue
            assignment = _ASSIGNMENT.match(line)
            if assignment:
                lines.setdefault(table + _names(assignment[1]), number)
        depth, quote = _open_after(line, depth, quote)
    return lines


def _entered(counts: dict[_Path, int], names: _Path, *, is_array: bool) -> _Path:
    """Return the path of a header: elements of arrays of tables are numbered, the last one is meant."""
    path: _Path = ()
    for position, name in enumerate(names):
        path = (*path, name)
        is_last = position == len(names) - 1
        if is_last and is_array:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _names(dotted: str) -> _Path:
    return tuple(name.strip("\"'") for name in _NAME.findall(dotted))


def _open_after(line: str, depth: int, quote: str) -> tuple[int, str]:
    """Return how many brackets, and which multi-line string, are open after a line."""
    position = 0
    while position < len(line):
        if quote:
            end = line.find(quote, position)
            if end < 0:
                return depth, quote if len(quote) == 3 else ""
            position, quote = end + len(quote), ""
            continue
        char = line[position]
        if char == "#":
            break
        if char in "\"'":
            quote = char * 3 if line.startswith(char * 3, position) else char
            position += len(quote)
            continue
        depth += (char in "[{") - (char in "]}")
        position += 1
    return depth, quote if len(quote) == 3 else ""
