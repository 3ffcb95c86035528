"""Kernel times of single layers, as LLMServingSim's profiler writes them, put together to the times of whole steps.

Tables in microseconds: `dense.csv` (layer, tokens), `attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode)
and `per_sequence.csv` (layer, sequences). https://github.com/casys-kaist/LLMServingSim, profiler/
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sage_simulator.fitting import Steps
from sage_simulator.mistakes import FileMistake, wrong_value
from sage_simulator.text_files import Limits
from sage_simulator.traces.csv_table import label_column, number_column, read_columns
from sage_simulator.traces.trace import Floats
from sage_simulator.values import number

__all__ = ["LayerTimes", "find_file", "read_layer_times"]

_PER_STEP: Final = {"embedding": 1, "final_layernorm": 1, "lm_head": 1, "sampler": 1}
"""How often these layers run in a step; all others run once in every decoder layer, `layernorm` twice."""

_PER_DECODER_LAYER: Final = {
    "layernorm": 2, "qkv_proj": 1, "rotary_emb": 1, "o_proj": 1, "gate_up_proj": 1, "act_fn": 1, "down_proj": 1,
}  # fmt: skip

_ATTENTION: Final = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
_MAX: Final = 1e9
_GRAPH_TOKENS: Final = 512


@dataclass(frozen=True, slots=True, eq=False)
class LayerTimes:
    """Step times of one model on one device.

    `by_tokens`, `by_sequences`: (sizes, seconds of all layers together). `grid`: seconds of one layer's attention by
    the four sizes in `axes`, NaN where nothing was measured. `graph_tokens`: steps of up to that many tokens are run
    as captured graphs, padded to one of vLLM's capture sizes.
    """

    by_tokens: tuple[Floats, Floats]
    by_sequences: tuple[Floats, Floats]
    axes: tuple[Floats, Floats, Floats, Floats]
    grid: npt.NDArray[np.float64]
    num_layers: int
    graph_tokens: int

    def step_seconds(self, steps: Steps) -> Floats:
        """Return the GPU time of each step with one prompt at most, NaN outside what was measured."""
        tokens = _padded(steps.prefill + steps.decoding, self.graph_tokens)
        sequences = np.maximum(1, steps.decoding + (steps.prefill > 0))
        dense = np.interp(tokens, *self.by_tokens, right=np.nan)
        heads = np.interp(sequences, *self.by_sequences, right=np.nan)
        return dense + heads + self.num_layers * self._attention(steps)

    def _attention(self, steps: Steps) -> Floats:
        """Interpolate linearly in all four sizes; sizes that are there at all are those of the smallest measured."""
        decodes, prefills = steps.decoding > 0, steps.prefill > 0
        places = [
            _place(self.axes[0], steps.prefill, prefills),
            _place(self.axes[1], np.where(prefills, steps.context, 0.0), np.zeros_like(prefills)),
            _place(self.axes[2], steps.decoding, decodes),
            _place(self.axes[3], steps.decode_context, decodes),
        ]
        seconds = np.zeros(len(steps))
        for corner in itertools.product((0, 1), repeat=4):
            weight = np.ones(len(steps))
            for upper, (_, fraction) in zip(corner, places, strict=True):
                weight = weight * (fraction if upper else 1 - fraction)
            at = tuple(lower + upper for upper, (lower, _) in zip(corner, places, strict=True))
            seconds = seconds + np.where(weight == 0, 0.0, weight * self.grid[at])
        return seconds


def read_layer_times(folder: Path, hardware: str, *, num_layers: int, max_sequences: int = 256) -> LayerTimes:
    """Read the three tables of `hardware` in `folder`, plain or gzipped. Raises FileMistake.

    `num_layers`: of the model; profiles hold one decoder layer. `max_sequences`: of the engine, which captures graphs
    of up to twice as many tokens, and not more than 512.
    """
    dense = _sums(find_file(folder, hardware, "dense.csv"), "tokens", num_layers)
    heads = _sums(find_file(folder, hardware, "per_sequence.csv"), "sequences", num_layers)
    axes, grid = _attention_grid(find_file(folder, hardware, "attention.csv"))
    return LayerTimes(dense, heads, axes, grid, num_layers, min(_GRAPH_TOKENS, 2 * max_sequences))


def find_file(folder: Path, hardware: str, ending: str) -> Path:
    """Return the one file of `hardware` in `folder` called `…ending` or `…ending.gz`. Raises FileMistake.

    With an empty `hardware` the folder holds one device only.
    """
    if not folder.is_dir():
        raise FileMistake(folder, 0, "is no folder; expected one with measurements")
    whole = re.compile(rf"(.*[^0-9A-Za-z])?{re.escape(ending)}(\.gz)?")
    word = re.compile(rf"(^|[^0-9A-Za-z]){re.escape(hardware)}([^0-9A-Za-z]|$)" if hardware else "")
    found = sorted(file for file in folder.iterdir() if whole.fullmatch(file.name) and word.search(file.name))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        of_what = f" of {hardware}" if hardware else ""
        raise FileMistake(folder, 0, f"expected one {ending} (or .gz){of_what}; found {names}")
    return found[0]


def _sums(file: Path, size: str, num_layers: int) -> tuple[Floats, Floats]:
    """Return sizes, and the seconds of all layers of a step together."""
    table = read_columns(file, [label_column("layer"), _numbers(size), _numbers("time_us")], Limits())
    times = _per_layer(file, table, size)
    sizes = np.unique(np.concatenate([known for known, _ in times.values()]))
    total = np.zeros(len(sizes))
    for layer, (known, seconds) in times.items():
        total += _count(file, layer, num_layers) * np.interp(sizes, known, seconds)
    return sizes, total


def _per_layer(
    file: Path, table: Mapping[str, npt.NDArray[Any]], size: str
) -> dict[str, tuple[Floats, Floats]]:
    found = {}
    for layer in dict.fromkeys(table["layer"].tolist()):
        rows = table["layer"] == layer
        sizes, first = np.unique(table[size][rows], return_index=True)
        if len(sizes) != int(rows.sum()):
            raise FileMistake(file, 0, f"layer {layer!r} has two times for one of its {size}")
        found[str(layer)] = (sizes, table["time_us"][rows][first] * 1e-6)
    return found


def _count(file: Path, layer: str, num_layers: int) -> int:
    if layer in _PER_STEP:
        return _PER_STEP[layer]
    if layer in _PER_DECODER_LAYER:
        return num_layers * _PER_DECODER_LAYER[layer]
    known = ", ".join(sorted({*_PER_STEP, *_PER_DECODER_LAYER}))
    raise wrong_value(file, 0, "layer", layer, f"one of {known}")


def _attention_grid(
    file: Path,
) -> tuple[tuple[Floats, Floats, Floats, Floats], npt.NDArray[np.float64]]:
    """Return the four axes and the seconds on their grid.

    Axes are zero and the powers of two: profilers refine the grid in places, which leaves holes elsewhere.
    """
    columns = [_numbers(name) for name in _ATTENTION]
    table = read_columns(file, [*columns, _numbers("time_us")], Limits())
    sizes = np.column_stack([table[name] for name in _ATTENTION]).astype(np.int64)
    regular = ((sizes & (sizes - 1)) == 0).all(axis=1)
    sizes, seconds = sizes[regular], table["time_us"][regular] * 1e-6
    axes = [np.unique(np.append(sizes[:, number], 0)) for number in range(4)]
    for axis, name in zip(axes, _ATTENTION, strict=True):
        if len(axis) < 3:
            raise FileMistake(file, 0, f"{name} has fewer than two sizes that are powers of two")
    grid = np.full([len(axis) for axis in axes], np.nan)
    grid[tuple(np.searchsorted(axis, sizes[:, number]) for number, axis in enumerate(axes))] = seconds
    first, second, third, fourth = (axis.astype(np.float64) for axis in axes)
    return (first, second, third, fourth), grid


def _place(
    axis: Floats, values: Floats, is_there: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return index and fraction of each value on `axis`: NaN beyond its end. Where `is_there`, zero is no neighbour."""
    lowest = np.where(is_there, axis[1], axis[0])
    inside = np.maximum(values, lowest)
    lower = np.clip(np.searchsorted(axis, inside, side="right") - 1, 0, len(axis) - 2)
    fraction = (inside - axis[lower]) / (axis[lower + 1] - axis[lower])
    return lower, np.where(inside > axis[-1], np.nan, fraction)


def _padded(tokens: Floats, graph_tokens: int) -> Floats:
    """Return the sizes of the graphs that vLLM 0.19 captures: 1, 2, 4, by 8 up to 256, by 16 up to `graph_tokens`."""
    sizes = np.array([1, 2, 4, *range(8, 257, 8), *range(272, _GRAPH_TOKENS + 1, 16)], np.float64)
    sizes = sizes[sizes <= graph_tokens]
    place = np.minimum(np.searchsorted(sizes, tokens), len(sizes) - 1)
    return np.where(tokens <= sizes[-1], sizes[place], tokens)


def _numbers(name: str) -> Any:
    return number_column(name, number(0.0, _MAX), 0.0, _MAX)
