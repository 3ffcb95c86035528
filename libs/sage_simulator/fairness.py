"""How evenly tenants were served: Jain's index and the largest gap in service between two who both had to wait."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from sage_simulator.traces.trace import Floats

__all__ = ["OUTPUT_WEIGHT", "Fairness", "Served", "fairness", "jain_index"]

OUTPUT_WEIGHT: Final = 2.0
"""Cost of an output token in uncached prompt tokens (VTC, OSDI 24: the weights 1 and 2)."""

_MAX_BINS: Final = 4096
_BIN_SECONDS: Final = 1.0
_MAX_TENANTS: Final = 64
_AT_ONCE_SECONDS: Final = 1e-3
"""Output that took no longer counts as one event; a steeper ramp would cost digits and gain nothing."""


class Fairness(msgspec.Struct, frozen=True):
    """What tenants got. None: there was one tenant, or never two who waited at once.

    `jain_service`: Jain's index of the cost served per second to each tenant, over the time in which it and another one
    waited. `max_service_gap`: largest difference, in tokens, of the cost served to two tenants over any time in which
    both waited throughout (VTC, OSDI 24, section 4); `gap_tenants` are these two. A tenant waits through a second in
    which one of its runs was without its first token all the time. `jain_attainment`: Jain's index of the tenants'
    attainments.
    """

    jain_service: float | None
    max_service_gap: float | None
    gap_tenants: tuple[str, str] | None
    jain_attainment: float | None


class Served(msgspec.Struct, frozen=True):
    """One row per run: whose it is, when it waited, and what was served to it when.

    `prompt_cost` is served at `first_token_at`, `output_cost` evenly from then to `finished_at`; NaN: never.
    """

    tenant: npt.NDArray[np.uint32]
    submitted_at: Floats
    first_token_at: Floats
    finished_at: Floats
    is_waiting_for_ever: npt.NDArray[np.bool_]
    prompt_cost: Floats
    output_cost: Floats


def jain_index(values: Floats) -> float:
    """Return (sum x)^2 / (n sum x^2): 1 where all are equal, 1/n where one has everything. Jain et al., 1984."""
    squares = float(np.sum(values**2))
    return float(np.sum(values)) ** 2 / (len(values) * squares) if squares > 0 else 1.0


def fairness(names: tuple[str, ...], served: Served, attainment: Floats) -> Fairness:
    """Return the measures of one simulation; `attainment`: per tenant, NaN where it submitted nothing."""
    known = attainment[~np.isnan(attainment)]
    if len(known) < 2:
        return Fairness(None, None, None, None)
    tenants = _busiest(served)
    end = float(np.nanmax(np.r_[served.finished_at, served.first_token_at, served.submitted_at]))
    begin = float(served.submitted_at.min())
    num_bins = int(np.clip((end - begin) / _BIN_SECONDS, 1, _MAX_BINS))
    edges = np.linspace(begin, end + 1e-9, num_bins + 1)
    service = np.stack([_service(served, served.tenant == tenant, edges) for tenant in tenants])
    waits = np.stack([_waiting(served, served.tenant == tenant, edges) for tenant in tenants])
    contested = waits & (waits.sum(axis=0) >= 2)
    seconds = contested.sum(axis=1) * (edges[1] - edges[0])
    has_waited = seconds > 0
    if has_waited.sum() < 2:
        return Fairness(None, None, None, jain_index(known))
    rates = (service * contested).sum(axis=1)[has_waited] / seconds[has_waited]
    gap, first, second = _largest_gap(service, waits)
    pair = (names[int(tenants[first])], names[int(tenants[second])])
    return Fairness(jain_index(rates), gap, pair, jain_index(known))


def _busiest(served: Served) -> npt.NDArray[np.int64]:
    """The tenants with most cost: pairs are compared, and most of a long tail never waits."""
    cost = np.bincount(served.tenant, weights=served.prompt_cost + served.output_cost)
    present = np.bincount(served.tenant) > 0
    order = np.argsort(-cost, kind="stable")
    return order[present[order]][:_MAX_TENANTS]


def _service(served: Served, rows: npt.NDArray[np.bool_], edges: Floats) -> Floats:
    """Cost served in each bin."""
    first, last = served.first_token_at[rows], served.finished_at[rows]
    output = served.output_cost[rows]
    begun = ~np.isnan(first)
    has_ended = begun & ~np.isnan(last)
    spread = has_ended & (last - first > _AT_ONCE_SECONDS)
    cost = served.prompt_cost[rows] + np.where(has_ended & ~spread, output, 0.0)
    at_once, _ = np.histogram(first[begun], edges, weights=cost[begun])
    # Served up to each edge, summed over runs: a ramp from first token to end is two straight lines.
    rate = output[spread] / (last[spread] - first[spread])
    until = _ramps(first[spread], rate, edges) - _ramps(last[spread], rate, edges)
    total: Floats = at_once + np.diff(until)
    return total


def _ramps(begin: Floats, rate: Floats, edges: Floats) -> Floats:
    """Sum of rate * max(0, t - begin) at each edge t."""
    order = np.argsort(begin)
    counts = np.searchsorted(begin[order], edges, side="right")
    rates = np.r_[0.0, np.cumsum(rate[order])][counts]
    offsets = np.r_[0.0, np.cumsum(rate[order] * begin[order])][counts]
    found: Floats = rates * edges - offsets
    return found


def _waiting(served: Served, rows: npt.NDArray[np.bool_], edges: Floats) -> npt.NDArray[np.bool_]:
    """True for each bin during all of which some run of these had no first token."""
    begin = served.submitted_at[rows]
    end = np.where(served.is_waiting_for_ever[rows], edges[-1], served.first_token_at[rows])
    known = ~np.isnan(end)
    low = np.searchsorted(edges, begin[known], side="left")
    high = np.searchsorted(edges, end[known], side="right") - 1
    spans = high > low
    change = np.zeros(len(edges) + 1)
    np.add.at(change, low[spans], 1)
    np.add.at(change, high[spans], -1)
    return np.cumsum(change)[: len(edges) - 1] > 0


def _largest_gap(service: Floats, waits: npt.NDArray[np.bool_]) -> tuple[float, int, int]:
    best, pair = 0.0, (0, 1)
    for first in range(len(service)):
        for second in range(first + 1, len(service)):
            both = waits[first] & waits[second]
            if both.any():
                found = _gap(service[first] - service[second], both)
                if found > best:
                    best, pair = found, (first, second)
    return best, *pair


def _gap(difference: Floats, both: npt.NDArray[np.bool_]) -> float:
    """Largest |sum| of a run of neighbouring bins inside the stretches where both waited."""
    edges = np.flatnonzero(np.diff(np.r_[False, both, False].astype(np.int8)))
    best = 0.0
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        sums = np.r_[0.0, np.cumsum(difference[begin:end])]
        best = max(best, float(sums.max() - sums.min()))
    return best
