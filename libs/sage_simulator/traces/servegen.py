"""ServeGen: statistics per client of production models, turned into arrivals by a seeded generator.

https://github.com/alibaba/ServeGen, as `<pool>.arrivals.csv` (one row per client and window: rate, Gamma or Weibull
inter-arrival times) beside `<pool>.lengths.jsonl` (23 quantiles of input and output tokens per client and window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gamma
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from sage_simulator.mistakes import FileMistake
from sage_simulator.text_files import Limits
from sage_simulator.traces.assemble import llm_trace, trace_name
from sage_simulator.traces.csv_table import Column, number_column, read_columns, whole_number_column
from sage_simulator.traces.jsonl_rows import read_rows
from sage_simulator.traces.trace import MAX_TOKENS, Floats, Labels, Trace
from sage_simulator.values import Rule, choice, number, whole_number

__all__ = ["ARRIVALS", "COLUMNS", "LENGTHS", "WINDOW_SECONDS", "ServegenOptions", "read_servegen"]

COLUMNS: Final = ("client_id", "window_start_s", "rate_rps", "pattern", "param1", "param2")
ARRIVALS: Final = ".arrivals.csv"
LENGTHS: Final = ".lengths.jsonl"
WINDOW_SECONDS: Final = 600.0

QUANTILE_LEVELS: Final = (
    0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 0.999,
)  # fmt: skip

_MAX_SECONDS: Final = 1e11
_MAX_RATE: Final = 1e6
_PATTERNS: Final = {"Gamma": 0, "Weibull": 1}
_WARM_UP_GAPS: Final = 32.0
"""Mean gaps (times 1 + CV²) for which a client's arrivals run before its window, so that the window starts anywhere."""

_Quantile = Annotated[float, msgspec.Meta(ge=0, le=MAX_TOKENS)]


@dataclass(frozen=True, slots=True)
class ServegenOptions:
    """What is generated: `duration` seconds from `begin`, of the busiest `max_clients` clients (0: all)."""

    begin: float = 0.0
    duration: float = 3600.0
    max_clients: int = 0
    seed: int = 0


class _Quantiles(msgspec.Struct):
    q: list[_Quantile]


class _LengthRow(msgspec.Struct):
    client_id: int
    window_start_s: float
    input_tokens: _Quantiles
    output_tokens: _Quantiles


def _quantiles(value: object) -> _Quantiles:
    levels = value.get("q") if isinstance(value, dict) else None
    if not isinstance(levels, list):
        raise ValueError(value)
    return _Quantiles([number(0, MAX_TOKENS).parse(level) for level in levels])


_TABLE: Final = Rule(_quantiles, 'an object such as {"q": [...]} with 23 ascending numbers of tokens')
_CLIENT: Final = whole_number(0, 2**31 - 1)
_START: Final = number(0, _MAX_SECONDS)
_LENGTH_RULES: Final[dict[str, Rule[Any]]] = {
    "client_id": _CLIENT,
    "window_start_s": _START,
    "input_tokens": _TABLE,
    "output_tokens": _TABLE,
}


@dataclass(frozen=True, slots=True)
class _Lengths:
    """The length statistics of one client, by the start of their windows, ascending."""

    starts: Floats
    tables: Sequence[tuple[Floats, Floats]]

    def sampled(self, times: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return (input, output) tokens for each time: inverse distribution functions, linear between quantiles."""
        window = np.maximum(np.searchsorted(self.starts, times, side="right") - 1, 0)
        found = np.empty((2, len(times)))
        for index in np.unique(window):
            rows = window == index
            for side in (0, 1):
                levels = rng.random(int(rows.sum()))
                found[side, rows] = np.interp(levels, QUANTILE_LEVELS, self.tables[int(index)][side])
        return found[0], found[1]


def read_servegen(file: Path, limits: Limits, options: ServegenOptions) -> Trace:
    """Generate requests from the statistics at `file` (the arrivals) and the lengths beside it. Raises FileMistake.

    Arrivals are a renewal process per client and window. Deviation from ServeGen: inputs and outputs are drawn
    independently of each other (the published quantiles are marginal). The same options give the same trace.
    """
    client, start, rate, pattern, shape, scale = COLUMNS
    found = read_columns(
        file,
        [
            whole_number_column(client, _CLIENT, 0, 2**31 - 1),
            number_column(start, _START, 0, _MAX_SECONDS),
            number_column(rate, number(0, _MAX_RATE), 0, _MAX_RATE),
            Column(pattern, choice(_PATTERNS), _pattern_codes),
            number_column(shape, number(1e-9, 1e12), 1e-9, 1e12),
            number_column(scale, number(1e-12, 1e12), 1e-12, 1e12),
        ],
        limits,
    )
    lengths = _read_lengths(file, limits)
    is_used = _used_windows(file, found, options, lengths)
    rng = np.random.default_rng(options.seed)
    columns: list[tuple[Floats, Floats, Floats]] = []
    tenants: list[npt.NDArray[np.int64]] = []
    names = np.unique(found[client][is_used])
    end = options.begin + options.duration
    for index in np.flatnonzero(is_used):
        times = _arrivals(
            _Window(
                start=float(found[start][index]),
                rate=float(found[rate][index]),
                is_gamma=bool(found[pattern][index] == _PATTERNS["Gamma"]),
                shape=float(found[shape][index]),
                scale=float(found[scale][index]),
            ),
            rng,
        )
        times = times[(times >= options.begin) & (times < end)]
        number_of = int(found[client][index])
        inputs, outputs = lengths[number_of].sampled(times, rng)
        columns.append((times, inputs, outputs))
        tenants.append(np.full(len(times), np.searchsorted(names, number_of)))
    times, inputs, outputs = (np.concatenate(part) for part in zip(*columns, strict=True))
    tenant = Labels(np.concatenate(tenants).astype(np.uint32), tuple(f"client-{name}" for name in names))
    return llm_trace(
        file,
        times,
        np.maximum(1, np.rint(inputs)).astype(np.int64),
        np.maximum(1, np.rint(outputs)).astype(np.int64),
        tenant=tenant,
        route=tenant,
    )


def _pattern_codes(cells: list[str]) -> npt.NDArray[Any]:
    try:
        return np.array([_PATTERNS[cell] for cell in cells])
    except KeyError as error:
        raise ValueError(error) from None


def _used_windows(
    file: Path, found: dict[str, npt.NDArray[Any]], options: ServegenOptions, lengths: dict[int, _Lengths]
) -> npt.NDArray[np.bool_]:
    client, start, rate = COLUMNS[:3]
    end = options.begin + options.duration
    is_used = (found[start] + WINDOW_SECONDS > options.begin) & (found[start] < end) & (found[rate] > 0)
    is_used &= np.isin(found[client], list(lengths))
    if not is_used.any():
        last = float(found[start].max() + WINDOW_SECONDS)
        raise FileMistake(
            file,
            0,
            f"no client is active from {options.begin:g} s to {end:g} s; expected a part of 0 s to {last:g} s",
        )
    if options.max_clients:
        busy: dict[int, float] = {}
        for number_of, requests in zip(found[client][is_used], found[rate][is_used], strict=True):
            busy[int(number_of)] = busy.get(int(number_of), 0.0) + float(requests)
        kept = sorted(busy, key=lambda name: (-busy[name], name))[: options.max_clients]
        is_used &= np.isin(found[client], kept)
    return is_used


@dataclass(frozen=True, slots=True)
class _Window:
    """One client in one window: its requests per second on average, and the distribution of its gaps."""

    start: float
    rate: float
    is_gamma: bool
    shape: float
    scale: float

    @property
    def mean_gap(self) -> float:
        """The mean of the fitted distribution; shorter than 1 / rate where the client is active for a part only."""
        return self.scale * (self.shape if self.is_gamma else gamma(1 + 1 / self.shape))

    def gaps(self, size: int, rng: np.random.Generator) -> Floats:
        """Draw gaps in seconds."""
        if self.is_gamma:
            return rng.gamma(self.shape, self.scale, size)
        return self.scale * rng.weibull(self.shape, size)


def _arrivals(window: _Window, rng: np.random.Generator) -> Floats:
    """Arrival times of one client in one window; on average as many as its rate says.

    The gaps were fitted between arrivals, the rate over the whole window. Where they disagree, the client was active
    for a part of it: that part is placed at random, and its bursts stay as dense as they were.
    """
    mean = window.mean_gap
    active = min(1.0, mean * window.rate) * WINDOW_SECONDS
    stretch = min(1.0, 1.0 / (mean * window.rate))
    begin = window.start + (WINDOW_SECONDS - active) * float(rng.random())
    drawn = window.gaps(1024, rng)
    variation = float(np.var(drawn)) / max(float(np.mean(drawn)) ** 2, 1e-300)
    time = begin - min(_WARM_UP_GAPS * (1 + variation), 1e4) * mean * stretch
    parts: list[Floats] = []
    while time < begin + active:
        size = min(64 + int(2 * (begin + active - time) / (mean * stretch)), 1_000_000)
        times = time + np.cumsum(window.gaps(size, rng)) * stretch
        parts.append(times[(times >= begin) & (times < begin + active)])
        time = float(times[-1])
    return np.concatenate(parts) if parts else np.empty(0)


def _read_lengths(file: Path, limits: Limits) -> dict[int, _Lengths]:
    name = f"{trace_name(file)}{LENGTHS}"
    beside = next((path for path in (file.parent / name, file.parent / f"{name}.gz") if path.is_file()), None)
    if beside is None:
        raise FileMistake(
            file, 0, f"{name} (or {name}.gz) is not beside it; expected the clients' length quantiles"
        )
    whole = Limits(limits.max_bytes, limits.max_rows, limits.max_line_bytes)
    found: dict[int, list[tuple[float, Floats, Floats]]] = {}
    for number_of, row in read_rows(beside, _LengthRow, _LENGTH_RULES, whole):
        sides = [np.array(table.q) for table in (row.input_tokens, row.output_tokens)]
        for field, side in zip(("input_tokens", "output_tokens"), sides, strict=True):
            if len(side) != len(QUANTILE_LEVELS) or np.any(np.diff(side) < 0):
                raise FileMistake(
                    beside, number_of, f"{field}.q is {len(side)} numbers; expected {_TABLE.accepted}"
                )
        found.setdefault(row.client_id, []).append((row.window_start_s, sides[0], sides[1]))
    lengths = {}
    for client, rows in found.items():
        rows.sort(key=lambda row: row[0])
        lengths[client] = _Lengths(np.array([row[0] for row in rows]), [(row[1], row[2]) for row in rows])
    return lengths
