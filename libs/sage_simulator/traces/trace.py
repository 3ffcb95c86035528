"""A trace in memory: numpy columns, one row per run, each run a chain of stages, sorted by arrival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt

__all__ = [
    "EMBED",
    "LLM",
    "MAX_TOKENS",
    "RERANK",
    "RETRIEVE",
    "Floats",
    "Ids",
    "Indices",
    "Labels",
    "Stages",
    "Trace",
]

LLM: Final = "llm"
EMBED: Final = "embed"
RETRIEVE: Final = "retrieve"
RERANK: Final = "rerank"

MAX_TOKENS: Final = 10_000_000
"""Most tokens of one stage; a larger number in a file is taken for a mistake."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.uint32]
Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One name per run: `names[code[i]]`."""

    code: Indices
    names: tuple[str, ...]

    @classmethod
    def same(cls, name: str, num_runs: int) -> Self:
        """Give all runs one name."""
        return cls(np.zeros(num_runs, np.uint32), (name,))

    @classmethod
    def of(cls, values: Sequence[str]) -> Self:
        """Number the names in the order of their first use."""
        codes: dict[str, int] = {}
        found = np.fromiter((codes.setdefault(value, len(codes)) for value in values), np.uint32, len(values))
        return cls(found, tuple(codes))

    def take(self, rows: npt.NDArray[np.int64]) -> Labels:
        """Return the labels of `rows`; the names stay all."""
        return Labels(self.code[rows], self.names)


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """The stages of all runs, run after run.

    `pool`: uint32 index into `pools`; `prompt_tokens`: all input tokens of the stage; `output_tokens`: 0 where
    nothing is generated; `items`: texts or documents. Stage i has the prefix blocks
    `blocks[block_start[i]:block_start[i+1]]`: equal leading ids mean equal leading `block_tokens` tokens each.
    Arrays have the shape (num_stages,), `block_start` one more.
    """

    pool: Indices
    pools: tuple[str, ...]
    prompt_tokens: Indices
    output_tokens: Indices
    items: Indices
    block_start: npt.NDArray[np.int64]
    blocks: Ids
    block_tokens: int = 0

    def __len__(self) -> int:
        return len(self.pool)

    def take(self, rows: npt.NDArray[np.int64]) -> Stages:
        """Return the stages of `rows`, in that order."""
        start, picked = gathered(self.block_start, rows)
        return replace(
            self,
            pool=self.pool[rows],
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            items=self.items[rows],
            block_start=start,
            blocks=self.blocks[picked],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a trace says, whatever its format. Run i has the stages `stage_start[i]:stage_start[i+1]`.

    `arrival`: float64 seconds since the trace's beginning, ascending. `span`: its length in seconds, at least the last
    arrival. `tenant`, `session` and `route` are labels; a run without a session has one of its own. `num_left_out`:
    rows of the file that asked for nothing or got nothing (failed requests).
    """

    name: str
    arrival: Floats
    span: float
    tenant: Labels
    route: Labels
    session: npt.NDArray[np.int64]
    stage_start: npt.NDArray[np.int64]
    stages: Stages
    num_left_out: int = 0

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def rate(self) -> float:
        """Runs per second; 0 where the trace has no length."""
        return len(self) / self.span if self.span > 0 else 0.0

    @property
    def ends_in(self) -> Indices:
        """Index into `stages.pools` of the pool in which each run ends."""
        return self.stages.pool[self.stage_start[1:] - 1]

    @property
    def has_prefixes(self) -> bool:
        """True where prompts share known prefixes."""
        return len(self.stages.blocks) > 0

    def take(self, rows: npt.NDArray[np.int64]) -> Trace:
        """Return the runs `rows` in that order, with their arrivals as they are: the caller sorts or sets new ones."""
        start, picked = gathered(self.stage_start, rows)
        return replace(
            self,
            arrival=self.arrival[rows],
            tenant=self.tenant.take(rows),
            route=self.route.take(rows),
            session=self.session[rows],
            stage_start=start,
            stages=self.stages.take(picked),
        )


def gathered(
    start: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the offsets and the element indices of the ragged `rows`: element j of row i is at `start[i] + j`."""
    lengths = (start[1:] - start[:-1])[rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    picked = np.arange(offsets[-1], dtype=np.int64) + np.repeat(start[rows] - offsets[:-1], lengths)
    return offsets, picked
