"""Mooncake: timestamp (ms), input_length, output_length, hash_ids of 512-token blocks chained by prefix.

https://github.com/kvcache-ai/Mooncake (FAST25-release/traces). The published timestamps are rounded to batches of three
seconds; they are kept as they are (`jittered` in `sage_simulator.resampling` spreads them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from sage_simulator.text_files import Limits
from sage_simulator.traces.assemble import llm_trace
from sage_simulator.traces.jsonl_rows import MAX_ID, id_list, read_rows
from sage_simulator.traces.trace import MAX_TOKENS, Trace
from sage_simulator.values import Rule, number, whole_number

__all__ = ["BLOCK_TOKENS", "FIELDS", "read_mooncake"]

BLOCK_TOKENS: Final = 512
FIELDS: Final = ("timestamp", "input_length", "output_length")
"""The fields that must be there; hash_ids are read where they are."""

_MAX_MILLISECONDS: Final = 1e14
_MAX_BLOCKS: Final = 65_536
_RULES: Final[dict[str, Rule[Any]]] = {
    "timestamp": number(0, _MAX_MILLISECONDS),
    "input_length": whole_number(0, MAX_TOKENS),
    "output_length": whole_number(0, MAX_TOKENS),
    "hash_ids": id_list(_MAX_BLOCKS),
}
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]


class _Row(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=_MAX_MILLISECONDS)]
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: Annotated[list[_Id], msgspec.Meta(max_length=_MAX_BLOCKS)] = msgspec.field(default_factory=list)


def read_mooncake(file: Path, limits: Limits, *, block_tokens: int = BLOCK_TOKENS) -> Trace:
    """Read a trace of the Mooncake form. Ids beyond the prompt's last block are dropped. Raises FileMistake."""
    rows = [row for _, row in read_rows(file, _Row, _RULES, limits)]
    prompt = np.array([row.input_length for row in rows], np.int64)
    sizes = np.minimum([len(row.hash_ids) for row in rows], -(-prompt // block_tokens)).astype(np.int64)
    start = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(sizes, out=start[1:])
    ids = (block for row, size in zip(rows, sizes.tolist(), strict=True) for block in row.hash_ids[:size])
    return llm_trace(
        file,
        np.array([row.timestamp for row in rows], np.float64) / 1e3,
        prompt,
        np.array([row.output_length for row in rows], np.int64),
        blocks=(start, np.fromiter(ids, np.uint64, int(start[-1])), block_tokens),
    )
