"""Rules for single values of trace, fleet and class files: what is accepted, and how that is said in a message."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from sage_core.units import parse_duration

__all__ = [
    "Rule",
    "choice",
    "duration",
    "flag",
    "mapping",
    "number",
    "share",
    "text",
    "whole_number",
]

T = TypeVar("T")
_PERCENT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")


@dataclass(frozen=True, slots=True)
class Rule(Generic[T]):
    """Turns what a file holds into a value. `parse` raises ValueError; `accepted` completes "expected …"."""

    parse: Callable[[object], T]
    accepted: str


def whole_number(low: int, high: int) -> Rule[int]:
    """Accept integers of low..high, also written as text or with an empty fraction (`374.0`)."""

    def parse(value: object) -> int:
        found = _as_float(value)
        if found != math.floor(found):
            raise ValueError(value)
        exact = int(value) if isinstance(value, int) else int(found)
        return _within(exact, low, high)

    return Rule(parse, f"a whole number from {low} to {high}")


def number(low: float, high: float) -> Rule[float]:
    """Accept finite numbers of low..high, also written as text."""
    return Rule(lambda value: _within(_as_float(value), low, high), f"a number from {low:g} to {high:g}")


def duration(low: float = 0.0, high: float = math.inf) -> Rule[float]:
    """Accept seconds as a number, or as text with a unit."""
    bounds = "" if high == math.inf and low <= 0 else f" from {low:g} s to {high:g} s"

    def parse(value: object) -> float:
        return _within(parse_duration(value), low, high)

    return Rule(parse, f"a duration such as 250ms or 2s{bounds}")


def share() -> Rule[float]:
    """Accept a part of a whole: 0.3 or "30%"."""

    def parse(value: object) -> float:
        match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
        found = float(match[1]) / 100 if match else _as_float(value)
        return _within(found, 0.0, 1.0)

    return Rule(parse, "a share such as 0.3 or 30%")


def text(max_chars: int = 128) -> Rule[str]:
    """Accept a name: printable text that is not empty."""

    def parse(value: object) -> str:
        if (
            not isinstance(value, str)
            or not value.strip()
            or len(value) > max_chars
            or not value.isprintable()
        ):
            raise ValueError(value)
        return value

    return Rule(parse, f"text of 1 to {max_chars} printable characters")


def choice(options: Mapping[str, T]) -> Rule[T]:
    """Accept one of the names in `options`; the value is what stands beside it."""

    def parse(value: object) -> T:
        if not isinstance(value, str) or value not in options:
            raise ValueError(value)
        return options[value]

    return Rule(parse, f"one of {', '.join(options)}")


def flag() -> Rule[bool]:
    """Accept true and false, in files that have no booleans as text."""

    def parse(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise ValueError(value)

    return Rule(parse, "true or false")


def mapping(low: float, high: float) -> Rule[dict[str, float]]:
    """Accept a table of names with numbers of low..high."""
    inner = number(low, high)

    def parse(value: object) -> dict[str, float]:
        if not isinstance(value, dict):
            raise ValueError(value)
        return {text().parse(name): inner.parse(found) for name, found in value.items()}

    return Rule(parse, f"a table of names with {inner.accepted.removeprefix('a ')}s")


def _as_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(value)
    try:
        return float(value)
    except OverflowError:
        raise ValueError(value) from None


N = TypeVar("N", int, float)


def _within(value: N, low: float, high: float) -> N:
    # Written so that NaN is refused.
    if not low <= value <= high:
        raise ValueError(value)
    return value
