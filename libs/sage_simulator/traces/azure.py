"""Azure LLM inference traces, 2023 and later: TIMESTAMP, ContextTokens, GeneratedTokens.

https://github.com/Azure/AzurePublicDataset (AzureLLMInferenceDataset2023.md, …2024.md): the first has bare wall-clock
times with seven digits, the second times with an offset from UTC.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sage_simulator.text_files import Limits
from sage_simulator.traces.assemble import llm_trace
from sage_simulator.traces.csv_table import Column, read_columns, whole_number_column
from sage_simulator.traces.trace import MAX_TOKENS, Trace
from sage_simulator.values import Rule, whole_number

__all__ = ["COLUMNS", "read_azure"]

COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_TIME: Final = re.compile(
    r"\s*(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d{1,9})?\s*(Z|[+-]\d\d:?\d\d)?\s*", re.ASCII
)
_PLAIN_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d{1,9})?", re.ASCII)
_ACCEPTED_TIME: Final = (
    "a time such as 2023-11-16 18:17:03.9799600 (optionally with an offset such as +00:00)"
)
_TOKENS: Final = whole_number(0, MAX_TOKENS)


def read_azure(file: Path, limits: Limits) -> Trace:
    """Read a trace of the Azure form. Raises FileMistake."""
    time, context, generated = COLUMNS
    found = read_columns(
        file,
        [
            Column(time, Rule(_seconds, _ACCEPTED_TIME), _many_seconds),
            whole_number_column(context, _TOKENS, 0, MAX_TOKENS),
            whole_number_column(generated, _TOKENS, 0, MAX_TOKENS),
        ],
        limits,
    )
    return llm_trace(file, found[time], found[context], found[generated])


def _many_seconds(cells: list[str]) -> npt.NDArray[Any]:
    """Seconds since 1970; raises ValueError for anything but plain UTC times, which `_seconds` then looks at."""
    plain = [cell.removesuffix("+00:00") for cell in cells]
    # NumPy also takes "2023" and "today", and warns of times with an offset.
    if not all(_PLAIN_TIME.fullmatch(cell) for cell in plain):
        raise ValueError(cells)
    times = np.array(plain, dtype="datetime64[ns]")
    whole = times.astype("datetime64[s]")
    # Whole seconds apart from their fraction: nanoseconds since 1970 do not fit a double.
    seconds: npt.NDArray[np.float64] = whole.astype(np.float64) + (times - whole).astype(np.float64) * 1e-9
    return seconds


def _seconds(cell: object) -> float:
    match = _TIME.fullmatch(str(cell))
    if match is None:
        raise ValueError(cell)
    date, clock, fraction, offset = match.groups()
    zone = "+00:00" if offset in (None, "Z") else offset
    return datetime.fromisoformat(f"{date}T{clock}{zone}").timestamp() + float(fraction or 0)
