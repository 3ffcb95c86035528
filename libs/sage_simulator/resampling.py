"""Other workloads of the same kind as a trace, one per seed, so that results can be given with their spread.

`blocks` (circular block bootstrap; Politis and Romano, 1992): windows of 1/24 of the trace are drawn at random with
replacement and set one after the other. Bursts and daily shape within a window stay; a window drawn twice gets prefixes
and sessions of its own, or it would hit its own cache. `sessions`: every session is kept with probability 0.8 and its
arrivals are moved by up to half a mean gap; prefixes are found again as soon, or as late, as in the trace. The default
is `sessions` where a trace knows prefixes or sessions, else `blocks`.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sage_simulator.shaping import salted
from sage_simulator.traces.trace import Trace

__all__ = ["Resampling", "jittered", "prefix_sessions", "resampled"]

NUM_WINDOWS: Final = 24
KEEP_SHARE: Final = 0.8
_SHARED_BY: Final = 0.02
"""A block that more than this part of all runs begin with belongs to no session: a system prompt."""


class Resampling(enum.StrEnum):
    """How a seed changes a trace; see the module."""

    AUTO = "auto"
    BLOCKS = "blocks"
    SESSIONS = "sessions"
    NONE = "none"


def resampled(trace: Trace, seed: int, method: Resampling = Resampling.AUTO) -> Trace:
    """Return the workload that `seed` stands for; the same arguments give the same runs. Its span is the trace's."""
    rng = np.random.default_rng((seed, len(trace)))
    if method is Resampling.AUTO:
        knows_sessions = trace.has_prefixes or len(np.unique(trace.session)) < len(trace)
        method = Resampling.SESSIONS if knows_sessions else Resampling.BLOCKS
    if method is Resampling.NONE or trace.span <= 0:
        return trace
    if method is Resampling.BLOCKS:
        return _drawn_windows(trace, rng)
    return _kept_sessions(trace, rng)


def jittered(trace: Trace, width: float, rng: np.random.Generator) -> Trace:
    """Return the trace with every arrival moved by up to `width` / 2 seconds either way, inside its span.

    Runs that arrive at one moment are moved together: a batch of clients stays one.
    """
    moments, inverse = np.unique(trace.arrival, return_inverse=True)
    moved = (moments + width * (rng.random(len(moments)) - 0.5))[inverse]
    moved = np.clip(moved, 0.0, np.nextafter(trace.span, 0.0))
    return _sorted(replace(trace, arrival=moved))


def prefix_sessions(trace: Trace) -> npt.NDArray[np.int64]:
    """Return a number per run, equal for runs of one session, or, where sessions are unknown, of one long prefix.

    The long prefix of a run is the first block that at most 2 % of all runs have; runs without one stand alone.
    """
    if not trace.has_prefixes or len(np.unique(trace.session)) < len(trace):
        return trace.session
    stages = trace.stages
    _, inverse, counts = np.unique(stages.blocks, return_inverse=True, return_counts=True)
    is_own = counts[inverse] <= max(1.0, _SHARED_BY * len(trace))
    stage_of = np.repeat(np.arange(len(stages)), np.diff(stages.block_start))
    run_of = np.repeat(np.arange(len(trace)), np.diff(trace.stage_start))[stage_of]
    runs, first = np.unique(run_of[is_own], return_index=True)
    found = len(counts) + np.arange(len(trace), dtype=np.int64)
    found[runs] = inverse[is_own][first]
    return found


def _drawn_windows(trace: Trace, rng: np.random.Generator) -> Trace:
    width = trace.span / NUM_WINDOWS
    rows: list[npt.NDArray[np.int64]] = []
    times: list[npt.NDArray[np.float64]] = []
    for number, start in enumerate(rng.random(NUM_WINDOWS) * trace.span):
        for lap in (0.0, trace.span):
            low, high = np.searchsorted(trace.arrival, [start - lap, start - lap + width])
            rows.append(np.arange(low, high))
            times.append(trace.arrival[low:high] + lap - start + number * width)
    picked = np.concatenate(rows)
    if not len(picked):
        return trace
    drawn = replace(trace.take(picked), arrival=np.concatenate(times))
    copy = _copy_numbers(picked)
    blocks = drawn.stages.blocks.copy()
    if len(blocks):
        copy_of_stage = np.repeat(copy, np.diff(drawn.stage_start))
        copy_of_block = np.repeat(copy_of_stage, np.diff(drawn.stages.block_start))
        for number in range(1, int(copy.max()) + 1):
            is_copy = copy_of_block == number
            blocks[is_copy] = salted(blocks[is_copy], number)
    session = drawn.session + copy * (int(trace.session.max()) + 1)
    return _sorted(replace(drawn, session=session, stages=replace(drawn.stages, blocks=blocks)))


def _kept_sessions(trace: Trace, rng: np.random.Generator) -> Trace:
    _, inverse = np.unique(prefix_sessions(trace), return_inverse=True)
    kept = np.flatnonzero((rng.random(int(inverse.max()) + 1) < KEEP_SHARE)[inverse])
    if not len(kept):
        return trace
    return jittered(trace.take(kept), trace.span / len(trace), rng)


def _copy_numbers(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how often each row was drawn before: 0 for its first time."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[begins, len(ordered)])
    found: npt.NDArray[Any] = np.empty(len(rows), np.int64)
    found[order] = np.arange(len(rows)) - np.repeat(begins, lengths)
    return found


def _sorted(trace: Trace) -> Trace:
    return trace.take(np.argsort(trace.arrival, kind="stable"))
