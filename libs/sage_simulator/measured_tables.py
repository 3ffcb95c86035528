"""Measured steps and batches as people write them down (CSV), and profiles as configuration files hold them (TOML)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sage_policy import EngineProfile
from sage_simulator.fitting import Fit, Steps, draw_steps, fit_batches, fit_steps
from sage_simulator.layer_times import read_layer_times
from sage_simulator.mistakes import FileMistake
from sage_simulator.text_files import Limits, first_line
from sage_simulator.traces.csv_table import Column, header_names, label_column, number_column, read_columns
from sage_simulator.traces.trace import Floats
from sage_simulator.values import number

__all__ = [
    "BATCH_COLUMNS",
    "STEP_COLUMNS",
    "Batches",
    "fit_layers",
    "fit_table",
    "profile_text",
    "read_batches",
    "read_steps",
]

STEP_COLUMNS: Final = ("prefill", "prompts", "context", "decoding", "decode_context", "seconds")
"""See `Steps`."""
BATCH_COLUMNS: Final = ("tokens", "items", "seconds")
"""Tokens with padding, inputs, seconds of each batch; a column `executor` tells several apart."""

_MAX: Final = 1e12
_MIN_SECONDS: Final = 1e-9
_PER_UNIT: Final = ("a0", "a1", "a2", "m0", "m1", "m2", "m3", "m4", "host")


@dataclass(frozen=True, slots=True, eq=False)
class Batches:
    """Measured batches, float64 arrays of one length."""

    tokens: Floats
    items: Floats
    seconds: Floats


def read_steps(file: Path) -> tuple[Steps, Floats]:
    """Read steps and their seconds from a CSV file with `STEP_COLUMNS`. Raises FileMistake."""
    table = read_columns(file, [_column(name) for name in STEP_COLUMNS], Limits())
    *sizes, seconds = (table[name] for name in STEP_COLUMNS)
    return Steps(*sizes), seconds


def read_batches(file: Path) -> dict[str, Batches]:
    """Read batches by executor ("" where there is no such column) from a CSV file. Raises FileMistake."""
    columns = [label_column("executor", default=""), *(_column(name) for name in BATCH_COLUMNS)]
    table = read_columns(file, columns, Limits())
    found = {}
    for executor in dict.fromkeys(table["executor"].tolist()):
        rows = table["executor"] == executor
        found[str(executor)] = Batches(*(table[name][rows] for name in BATCH_COLUMNS))
    return found


def fit_table(file: Path, limits: EngineProfile, executor: str = "") -> Fit:
    """Return the fit to a CSV file of steps or of batches; which one it is, its header says. Raises FileMistake."""
    number_of_line, line = first_line(file, Limits())
    names = header_names(line)
    if header_names(",".join(STEP_COLUMNS)) <= names:
        steps, seconds = read_steps(file)
        try:
            return fit_steps(steps, seconds, limits)
        except ValueError as error:
            raise FileMistake(file, 0, str(error)) from None
    if header_names(",".join(BATCH_COLUMNS)) <= names:
        batches = read_batches(file)
        if executor not in batches:
            known = ", ".join(repr(name) for name in batches)
            raise FileMistake(file, 0, f"has no executor {executor!r}; expected one of {known}")
        found = batches[executor]
        return fit_batches(found.tokens, found.items, found.seconds, limits)
    raise FileMistake(
        file, number_of_line, f"expected the columns {','.join(STEP_COLUMNS)} or {','.join(BATCH_COLUMNS)}"
    )


def fit_layers(
    folder: Path,
    hardware: str,
    limits: EngineProfile,
    *,
    num_layers: int,
    num_steps: int = 10_000,
    seed: int = 0,
) -> Fit:
    """Return the fit to the layer times in `folder`, over steps drawn within `limits`. Raises FileMistake.

    Steps outside of what was measured are left out: `Fit` says how many remained.
    """
    times = read_layer_times(folder, hardware, num_layers=num_layers, max_sequences=limits.max_sequences)
    steps = draw_steps(limits, num_steps, seed)
    seconds = times.step_seconds(steps)
    known = ~np.isnan(seconds)
    try:
        return fit_steps(steps.take(known), seconds[known], limits)
    except ValueError:
        raise FileMistake(folder, 0, "no step within these limits is inside what was measured") from None


def profile_text(name: str, profile: EngineProfile, comments: Sequence[str] = ()) -> str:
    """Return the [profiles.NAME] that `read_profiles` reads back; coefficients with four digits, defaults left out."""
    lines = [*(f"# {comment}" for comment in comments), f"[profiles.{name}]"]
    for field in msgspec.structs.fields(profile):
        value = getattr(profile, field.name)
        if value == field.default:
            continue
        if field.name in _PER_UNIT:
            lines.append(f"{field.name} = {float(f'{value:.4g}')!r}")
        else:
            lines.append(f"{field.name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"


def _column(name: str) -> Column:
    low = _MIN_SECONDS if name == "seconds" else 0.0
    return number_column(name, number(low, _MAX), low, _MAX)
