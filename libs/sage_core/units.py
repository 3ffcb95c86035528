"""Durations and sizes as people write them in settings: `250ms`, `2s`, `8MiB`, or a bare number."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

__all__ = ["ByteSize", "Duration", "parse_bytes", "parse_duration"]

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def _parse(text: str, units: dict[str, float] | dict[str, int], what: str) -> float:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"found {text!r}; expected a {what} such as {_example(units)}")
    number, unit = match.groups()
    if unit == "":
        return float(number)
    if unit not in units:
        raise ValueError(f"found unit {unit!r} in {text!r}; expected one of {', '.join(units)}")
    return float(number) * units[unit]


def _example(units: dict[str, float] | dict[str, int]) -> str:
    return "250ms, 2s or 5m" if "ms" in units else "64KiB or 8MiB"


def parse_duration(value: object) -> float:
    """Return seconds. Bare numbers are seconds. Raises ValueError naming what was found and expected."""
    if isinstance(value, str):
        return _parse(value, _SECONDS, "duration")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"found {value!r}; expected a duration such as 250ms, 2s or 5m")
    return float(value)


def parse_bytes(value: object) -> int:
    """Return bytes. Bare numbers are bytes. Raises ValueError naming what was found and expected."""
    if isinstance(value, str):
        return int(_parse(value, _BYTES, "size"))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"found {value!r}; expected a size such as 64KiB or 8MiB")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
"""Seconds as a float; settings may write `250ms`, `2s`, `5m`, `1h`."""

ByteSize = Annotated[int, BeforeValidator(parse_bytes)]
"""Bytes as an int; settings may write `64KiB`, `8MiB`, `1GB`."""
