"""Where commands print: results on stdout, everything else on stderr; colours only on a terminal."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from rich.console import Console

__all__ = ["err", "out", "print_json"]

_PIPED_WIDTH = 160


def _console(*, is_stderr: bool) -> Console:
    console = Console(stderr=is_stderr, highlight=False)
    # Without a terminal there is no width to respect, and a folded table is hard to search.
    return console if console.is_terminal else Console(stderr=is_stderr, highlight=False, width=_PIPED_WIDTH)


out = _console(is_stderr=False)
err = _console(is_stderr=True)


def print_json(value: Any) -> None:
    """Print `value` (structs, dataclasses, lists, dicts) as one JSON document on stdout."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()
