"""What is wrong with a file: one line that names file, line, field, what was found and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sage_core import ConfigurationError

__all__ = ["FileMistake", "missing", "unknown_key", "wrong_value"]

_MAX_SHOWN = 60


class FileMistake(ConfigurationError):
    """A trace, fleet, profile or class file cannot be used. `line` counts from 1; 0: the file as a whole."""

    def __init__(self, file: Path | str, line: int, problem: str, *, param: str | None = None) -> None:
        self.file = str(file)
        self.line = line
        place = f"{file}, line {line}" if line else str(file)
        # Names and values come from the file: whatever they hold, the message stays one printable line.
        super().__init__(_printable(f"{place}: {problem}"), param=param)


def wrong_value(file: Path | str, line: int, field: str, found: object, accepted: str) -> FileMistake:
    """Return the mistake of a value that cannot be used."""
    return FileMistake(file, line, f"{field} is {shown(found)}; expected {accepted}", param=field)


def unknown_key(file: Path | str, line: int, where: str, key: str, known: Iterable[str]) -> FileMistake:
    """Return the mistake of a key that nobody reads."""
    text = f"unknown key {shown(key)} in {where}; expected one of {', '.join(known)}"
    return FileMistake(file, line, text, param=key)


def missing(file: Path | str, line: int, where: str, field: str, accepted: str) -> FileMistake:
    """Return the mistake of a value that is not there."""
    return FileMistake(file, line, f"{field} is missing in {where}; expected {accepted}", param=field)


def shown(value: object) -> str:
    """Return `value` as a message names it: quoted where it is text, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
