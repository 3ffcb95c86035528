"""Compile a pipeline file for `sage plan`."""

from __future__ import annotations

from pathlib import Path

from sage_core import ConfigurationError
from sage_pipeline import Plan, compile_pipeline, parse_pipeline

__all__ = ["plan_of"]

_MAX_BYTES = 2**20


def plan_of(file: Path) -> Plan:
    """Return the plan of `file` with its default parameters.

    Raises ConfigurationError with one `file:line:column: …` line per mistake.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    if len(text) > _MAX_BYTES:
        raise ConfigurationError(f"{file} has more than {_MAX_BYTES} bytes; expected a pipeline (YAML)")
    return compile_pipeline(parse_pipeline(text, str(file)))
