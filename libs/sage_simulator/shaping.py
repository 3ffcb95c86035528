"""Cutting, speeding up, mixing and relabelling traces. Every function returns a new trace; chance is seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sage_core import ConfigurationError
from sage_simulator.traces.trace import EMBED, Ids, Labels, Stages, Trace

__all__ = ["Moment", "as_embeddings", "at_rate", "cut", "limited", "mixed", "sped_up", "with_tenants"]

_MAX_EMBED_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in a trace: `seconds` from its beginning, or, with `is_share`, that part of its length (0..1)."""

    value: float
    is_share: bool = False

    def seconds(self, span: float) -> float:
        """Return the place in a trace of `span` seconds."""
        return self.value * span if self.is_share else self.value


def cut(trace: Trace, begin: Moment | None = None, end: Moment | None = None) -> Trace:
    """Return the runs that arrive in begin <= t < end, times counted from `begin`.

    Cutting at a share for training and at the same share for testing gives parts that do not overlap. Raises
    ConfigurationError where nothing is left.
    """
    first = begin.seconds(trace.span) if begin else 0.0
    last = end.seconds(trace.span) if end else trace.span
    low = int(np.searchsorted(trace.arrival, first))
    high = int(np.searchsorted(trace.arrival, last)) if end else len(trace)
    if low >= high:
        raise ConfigurationError(
            f"{trace.name} has no run from {first:g} s to {last:g} s; expected a part of 0 s to {trace.span:g} s"
        )
    part = trace.take(np.arange(low, high))
    return replace(part, arrival=part.arrival - first, span=max(min(last, trace.span) - first, 0.0))


def limited(trace: Trace, num_runs: int) -> Trace:
    """Return the first `num_runs` runs; the span ends where the next one would begin."""
    if num_runs >= len(trace):
        return trace
    return replace(trace.take(np.arange(num_runs)), span=float(trace.arrival[num_runs]))


def sped_up(trace: Trace, factor: float) -> Trace:
    """Return the trace with its time divided by `factor`: the shape of its bursts stays, in shorter time."""
    return replace(trace, arrival=trace.arrival / factor, span=trace.span / factor)


def at_rate(trace: Trace, rate: float) -> Trace:
    """Return the trace in the time in which its mean rate is `rate` runs per second.

    A trace without length (an offline job) is spread evenly. Raises ConfigurationError for a rate that is not positive.
    """
    if not rate > 0:
        raise ConfigurationError(f"rate is {rate!r}; expected a number of runs per second above 0")
    if trace.span <= 0:
        arrival = np.arange(len(trace), dtype=np.float64) / rate
        return replace(trace, arrival=arrival, span=len(trace) / rate)
    return sped_up(trace, rate / trace.rate)


def as_embeddings(trace: Trace, *, pool: str = EMBED, max_tokens: int = _MAX_EMBED_TOKENS) -> Trace:
    """Return a stream of embedding requests: one per run, of the run's first prompt cut to `max_tokens` tokens."""
    first = trace.stage_start[:-1]
    stages = trace.stages.take(first)
    return replace(
        trace,
        stage_start=np.arange(len(trace) + 1, dtype=np.int64),
        stages=replace(
            stages,
            pool=np.zeros(len(trace), np.uint32),
            pools=(pool,),
            prompt_tokens=np.minimum(stages.prompt_tokens, max_tokens).astype(np.uint32),
            output_tokens=np.zeros(len(trace), np.uint32),
            items=np.ones(len(trace), np.uint32),
            block_start=np.zeros(len(trace) + 1, np.int64),
            blocks=np.empty(0, np.uint64),
        ),
    )


def with_tenants(trace: Trace, shares: Mapping[str, float], seed: int) -> Trace:
    """Give every session to one of the tenants in `shares` (relative weights) at random; a session stays together."""
    names = tuple(shares)
    weights = np.array([shares[name] for name in names], np.float64)
    if not len(weights) or not np.all(weights >= 0) or not weights.sum() > 0:
        raise ConfigurationError("tenants have no shares; expected names with positive numbers")
    sessions, inverse = np.unique(trace.session, return_inverse=True)
    drawn = np.random.default_rng(seed).choice(len(names), len(sessions), p=weights / weights.sum())
    return replace(trace, tenant=Labels(drawn[inverse].astype(np.uint32), names))


def mixed(traces: Sequence[Trace]) -> Trace:
    """Return all runs of `traces` on one clock, each trace from its beginning to the end of the shortest one.

    Their prefixes and sessions stay apart; tenants and routes of one name are one. Raises ConfigurationError where
    two traces have prefix blocks of different sizes.
    """
    if len(traces) == 1:
        return traces[0]
    span = min(trace.span for trace in traces)
    parts = [cut(trace, None, Moment(span)) for trace in traces]
    sizes = {part.stages.block_tokens for part in parts if part.has_prefixes}
    if len(sizes) > 1:
        raise ConfigurationError(
            f"traces with blocks of {sorted(sizes)} tokens cannot be mixed; expected one size"
        )
    arrival = np.concatenate([part.arrival for part in parts])
    together = Trace(
        name="+".join(part.name for part in parts),
        arrival=arrival,
        span=span,
        tenant=_joined_labels([part.tenant for part in parts]),
        route=_joined_labels([part.route for part in parts]),
        session=_stacked([part.session for part in parts]),
        stage_start=_joined_offsets([part.stage_start for part in parts]),
        stages=_joined_stages([part.stages for part in parts], next(iter(sizes), 0)),
        num_left_out=sum(part.num_left_out for part in parts),
    )
    return together.take(np.argsort(arrival, kind="stable"))


def salted(blocks: Ids, salt: int) -> Ids:
    """Return ids that no other salt gives; salt 0 keeps them. The multiplier is the golden ratio's (Knuth, 6.4)."""
    return blocks if salt == 0 else blocks ^ np.uint64((salt * 0x9E3779B97F4A7C15) & (2**64 - 1))


def _joined_labels(labels: list[Labels]) -> Labels:
    numbers: dict[str, int] = {}
    codes = []
    for part in labels:
        new = np.array([numbers.setdefault(name, len(numbers)) for name in part.names], np.uint32)
        codes.append(new[part.code])
    return Labels(np.concatenate(codes), tuple(numbers))


def _joined_stages(parts: list[Stages], block_tokens: int) -> Stages:
    pools = _joined_labels([Labels(part.pool, part.pools) for part in parts])
    return Stages(
        pool=pools.code,
        pools=pools.names,
        prompt_tokens=np.concatenate([part.prompt_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        items=np.concatenate([part.items for part in parts]),
        block_start=_joined_offsets([part.block_start for part in parts]),
        blocks=np.concatenate([salted(part.blocks, number) for number, part in enumerate(parts)]),
        block_tokens=block_tokens,
    )


def _joined_offsets(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    found = [np.zeros(1, np.int64)]
    base = 0
    for part in parts:
        found.append(part[1:] + base)
        base += int(part[-1])
    return np.concatenate(found)


def _stacked(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    found, base = [], 0
    for part in parts:
        found.append(part + base)
        base += int(part.max()) + 1
    return np.concatenate(found)
