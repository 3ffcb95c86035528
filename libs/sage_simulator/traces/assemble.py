"""From the columns of a file to a `Trace`: rows sorted by time, empty ones left out, offsets filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sage_simulator.mistakes import FileMistake
from sage_simulator.traces.trace import LLM, Floats, Ids, Labels, Stages, Trace

__all__ = ["llm_trace", "sorted_by_arrival", "trace_name"]

_SUFFIXES = (".gz", ".csv", ".jsonl", ".json", ".txt", ".arrivals")


def llm_trace(
    file: Path,
    arrival: Floats,
    prompt_tokens: npt.NDArray[np.int64],
    output_tokens: npt.NDArray[np.int64],
    *,
    tenant: Labels | None = None,
    route: Labels | None = None,
    sessions: Sequence[str] | None = None,
    blocks: tuple[npt.NDArray[np.int64], Ids, int] | None = None,
) -> Trace:
    """Return a trace of single generate requests.

    `blocks`: offsets, shape (num_rows + 1,), ids, and the tokens of one block. `sessions`: "" where there is none.
    Rows without prompt or output are failed requests: they are left out and counted. Raises FileMistake where no
    row remains.
    """
    num_rows = len(arrival)
    offsets, ids, block_tokens = blocks or (np.zeros(num_rows + 1, np.int64), np.empty(0, np.uint64), 0)
    stages = Stages(
        pool=np.zeros(num_rows, np.uint32),
        pools=(LLM,),
        prompt_tokens=prompt_tokens.astype(np.uint32),
        output_tokens=output_tokens.astype(np.uint32),
        items=np.ones(num_rows, np.uint32),
        block_start=offsets,
        blocks=ids,
        block_tokens=block_tokens,
    )
    trace = Trace(
        name=trace_name(file),
        arrival=arrival,
        span=0.0,
        tenant=tenant or Labels.same("default", num_rows),
        route=route or Labels.same("", num_rows),
        session=session_numbers(sessions, num_rows),
        stage_start=np.arange(num_rows + 1, dtype=np.int64),
        stages=stages,
    )
    return sorted_by_arrival(file, trace, (prompt_tokens > 0) & (output_tokens > 0))


def sorted_by_arrival(file: Path, trace: Trace, is_kept: npt.NDArray[np.bool_]) -> Trace:
    """Return the kept rows by time (stable), the first at 0. Raises FileMistake where none is kept."""
    if not is_kept.any():
        raise FileMistake(file, 0, "no row has input and output; expected at least one request")
    rows = np.flatnonzero(is_kept)
    rows = rows[np.argsort(trace.arrival[rows], kind="stable")]
    taken = trace.take(rows)
    arrival = taken.arrival - taken.arrival[0]
    # Without an end of the recording in the file, it ends one mean gap after the last arrival.
    last = float(arrival[-1])
    span = last * len(rows) / (len(rows) - 1) if len(rows) > 1 else 0.0
    return Trace(
        name=taken.name,
        arrival=arrival,
        span=span,
        tenant=taken.tenant,
        route=taken.route,
        session=taken.session,
        stage_start=taken.stage_start,
        stages=taken.stages,
        num_left_out=len(is_kept) - len(rows),
    )


def session_numbers(sessions: Sequence[str] | None, num_rows: int) -> npt.NDArray[np.int64]:
    """Number the sessions from 0; every row without one gets a number of its own."""
    if sessions is None:
        return np.arange(num_rows, dtype=np.int64)
    codes: dict[str, int] = {}
    found = np.fromiter(
        (codes.setdefault(name, len(codes)) if name else -1 for name in sessions), np.int64, num_rows
    )
    alone = found < 0
    found[alone] = len(codes) + np.arange(int(alone.sum()))
    return found


def trace_name(file: Path) -> str:
    """Return the file's name without the endings of its format."""
    name = file.name
    while True:
        cut = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)
        if cut in (name, ""):
            return name
        name = cut
