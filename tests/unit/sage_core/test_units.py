"""Durations and sizes as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sage_core.units import parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        (" 1.5 s ", 1.5),
        ("5m", 300.0),
        ("5min", 300.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("40us", 40e-6),
        ("3", 3.0),
        (3, 3.0),
        (0.5, 0.5),
        (0, 0.0),
    ],
)
def test_durations_are_read_as_seconds(written: Any, seconds: float) -> None:
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [("64KiB", 65536), ("8MiB", 8 * 2**20), ("1GB", 10**9), ("1.5KiB", 1536), ("7", 7), ("7B", 7), (7, 7)],
)
def test_sizes_are_read_as_bytes(written: Any, size: int) -> None:
    assert parse_bytes(written) == size


@pytest.mark.parametrize("written", ["2 parsecs", "2S", "1kb"])
def test_an_unknown_unit_is_named_with_the_known_ones(written: str) -> None:
    parse = parse_bytes if written == "1kb" else parse_duration
    with pytest.raises(ValueError, match=r"found unit .* expected one of .*") as refused:
        parse(written)
    assert repr(written) in str(refused.value)


@pytest.mark.parametrize(
    "written", ["", "soon", "-1s", "1e3", "1,5s", True, None, [], -1, math.nan, math.inf]
)
def test_what_is_no_duration_is_refused_with_an_example(written: Any) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 250ms, 2s or 5m"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["", "big", "-1B", True, None, 1.5, -1])
def test_what_is_no_size_is_refused_with_an_example(written: Any) -> None:
    with pytest.raises(ValueError, match="expected a size such as 64KiB or 8MiB"):
        parse_bytes(written)
