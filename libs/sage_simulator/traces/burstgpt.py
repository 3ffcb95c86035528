"""BurstGPT: Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type; later releases add a Session ID.

https://github.com/HPMLL/BurstGPT. Rows without response tokens are failed requests and are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sage_simulator.text_files import Limits
from sage_simulator.traces.assemble import llm_trace
from sage_simulator.traces.csv_table import label_column, number_column, read_columns, whole_number_column
from sage_simulator.traces.trace import MAX_TOKENS, Labels, Trace
from sage_simulator.values import number, whole_number

__all__ = ["COLUMNS", "MAX_SECONDS", "read_burstgpt"]

COLUMNS: Final = ("Timestamp", "Request tokens", "Response tokens")
"""The columns that must be there; Model, Log Type and Session ID are read where they are."""

MAX_SECONDS: Final = 1e11
_TOKENS: Final = whole_number(0, MAX_TOKENS)


def read_burstgpt(file: Path, limits: Limits) -> Trace:
    """Read a trace of the BurstGPT form; output lengths are learned by model and log type. Raises FileMistake."""
    time, request, response = COLUMNS
    found = read_columns(
        file,
        [
            number_column(time, number(0, MAX_SECONDS), 0, MAX_SECONDS),
            whole_number_column(request, _TOKENS, 0, MAX_TOKENS),
            whole_number_column(response, _TOKENS, 0, MAX_TOKENS),
            label_column("Model", default=""),
            label_column("Log Type", default=""),
            label_column("Session ID", default=""),
        ],
        limits,
    )
    routes = [f"{model}/{kind}" for model, kind in zip(found["Model"], found["Log Type"], strict=True)]
    return llm_trace(
        file,
        found[time],
        found[request],
        found[response],
        route=Labels.of(routes),
        sessions=[str(name) for name in found["Session ID"]],
    )
