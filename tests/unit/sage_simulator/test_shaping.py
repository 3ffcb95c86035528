"""Cutting, speeding up, mixing and resampling keep what they promise to keep."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sage_core import ConfigurationError
from sage_simulator import (
    Moment,
    Resampling,
    Trace,
    as_embeddings,
    at_rate,
    cut,
    limited,
    mixed,
    resampled,
    with_tenants,
)
from sage_simulator.resampling import KEEP_SHARE, prefix_sessions
from sage_simulator.traces import LLM, Labels, Stages


def trace_of(
    arrival: list[float], *, blocks: list[list[int]] | None = None, span: float | None = None, name: str = "t"
) -> Trace:
    n = len(arrival)
    chains = blocks or [[] for _ in range(n)]
    start = np.cumsum([0, *(len(chain) for chain in chains)])
    stages = Stages(
        pool=np.zeros(n, np.uint32),
        pools=(LLM,),
        prompt_tokens=np.arange(1, n + 1, dtype=np.uint32),
        output_tokens=np.full(n, 5, np.uint32),
        items=np.ones(n, np.uint32),
        block_start=start.astype(np.int64),
        blocks=np.array([block for chain in chains for block in chain], np.uint64),
        block_tokens=512 if blocks else 0,
    )
    return Trace(
        name=name,
        arrival=np.array(arrival, np.float64),
        span=arrival[-1] + 1.0 if span is None else span,
        tenant=Labels.same(name, n),
        route=Labels.same("", n),
        session=np.arange(n, dtype=np.int64),
        stage_start=np.arange(n + 1, dtype=np.int64),
        stages=stages,
    )


def chains(trace: Trace) -> list[list[int]]:
    start = trace.stages.block_start
    return [trace.stages.blocks[start[i] : start[i + 1]].tolist() for i in range(len(trace.stages))]


arrivals = st.lists(st.floats(0, 1000), min_size=1, max_size=50).map(sorted)
traces = arrivals.map(trace_of)


@given(traces, st.floats(0.01, 0.99))
def test_two_parts_cut_at_one_place_are_the_whole_without_overlap(trace: Trace, share: float) -> None:
    middle = Moment(share, is_share=True)
    parts = []
    for begin, end in ((None, middle), (middle, None)):
        with suppress(ConfigurationError):  # a part without a run
            parts.append(cut(trace, begin, end))
    assert sum(len(part) for part in parts) == len(trace)
    assert sum(part.span for part in parts) <= trace.span + 1e-9
    assert np.concatenate([part.stages.prompt_tokens for part in parts]).tolist() == list(
        range(1, len(trace) + 1)
    )
    for part in parts:
        assert part.arrival[0] >= 0
        assert part.arrival[-1] <= part.span


@given(traces, st.floats(0.1, 1000))
def test_a_trace_at_a_rate_has_that_rate_and_its_old_shape(trace: Trace, rate: float) -> None:
    fast = at_rate(trace, rate)
    assert fast.rate == pytest.approx(rate)
    assert fast.arrival / fast.span == pytest.approx(trace.arrival / trace.span)


def test_a_trace_without_length_is_spread_evenly() -> None:
    job = at_rate(trace_of([0, 0, 0, 0], span=0.0), 2.0)
    assert job.arrival.tolist() == [0, 0.5, 1, 1.5]
    assert job.rate == pytest.approx(2.0)
    with pytest.raises(ConfigurationError, match="above 0"):
        at_rate(job, 0.0)


def test_the_first_runs_end_where_the_next_begins() -> None:
    first = limited(trace_of([0, 1, 5, 9]), 2)
    assert first.arrival.tolist() == [0, 1]
    assert first.span == 5


@given(traces, traces)
def test_mixed_traces_are_merged_by_time_up_to_the_end_of_the_shorter(first: Trace, second: Trace) -> None:
    assume(max(first.arrival[0], second.arrival[0]) < min(first.span, second.span))
    both = mixed([first, replace(second, tenant=Labels.same("u", len(second)))])
    assert both.span == min(first.span, second.span)
    expected = sorted(t for t in [*first.arrival, *second.arrival] if t < both.span)
    assert both.arrival.tolist() == expected
    assert len(set(both.session.tolist())) == len(both)
    assert both.tenant.names == ("t", "u")


def test_mixing_keeps_stages_and_prefixes_of_each_trace_apart() -> None:
    first = trace_of([0.0, 2.0], blocks=[[1, 2], [1]])
    second = as_embeddings(trace_of([1.0, 3.0]), pool="embed", max_tokens=1)
    third = trace_of([0.5, 2.5], blocks=[[1], [1]])
    both = mixed([first, second, third])
    assert [both.stages.pools[pool] for pool in both.stages.pool] == ["llm", "llm", "embed", "llm", "llm"]
    assert both.stages.prompt_tokens.tolist() == [1, 1, 1, 2, 2]
    found = chains(both)
    assert found[0] == [1, 2]
    assert found[3] == [1]
    assert found[1] == found[4] != [1]
    with pytest.raises(ConfigurationError, match="blocks of"):
        mixed([first, replace(third, stages=replace(third.stages, block_tokens=64))])


def test_tenants_get_their_shares_and_sessions_stay_together() -> None:
    trace = trace_of([float(i) for i in range(4000)])
    trace = replace(trace, session=trace.session // 4)
    shared = with_tenants(trace, {"a": 3.0, "b": 1.0}, seed=1)
    assert np.mean(shared.tenant.code == 0) == pytest.approx(0.75, abs=0.05)
    for session in range(1000):
        assert len(set(shared.tenant.code[4 * session : 4 * session + 4].tolist())) == 1
    with pytest.raises(ConfigurationError, match="shares"):
        with_tenants(trace, {"a": 0.0}, seed=1)


@settings(max_examples=50)
@given(traces, st.integers(0, 5), st.sampled_from([Resampling.BLOCKS, Resampling.SESSIONS, Resampling.AUTO]))
def test_a_sample_is_sorted_inside_the_span_and_the_same_for_one_seed(
    trace: Trace, seed: int, method: Resampling
) -> None:
    sample = resampled(trace, seed, method)
    again = resampled(trace, seed, method)
    assert sample.arrival.tolist() == again.arrival.tolist()
    assert (np.diff(sample.arrival) >= 0).all()
    assert sample.span == trace.span
    assert sample.arrival[0] >= 0
    assert sample.arrival[-1] <= trace.span
    assert set(sample.stages.prompt_tokens.tolist()) <= set(trace.stages.prompt_tokens.tolist())


@pytest.mark.parametrize(("method", "share"), [(Resampling.BLOCKS, 1.0), (Resampling.SESSIONS, KEEP_SHARE)])
def test_samples_have_the_traces_rate_on_average(method: Resampling, share: float) -> None:
    rng = np.random.default_rng(0)
    trace = trace_of(np.cumsum(rng.exponential(1.0, 3000)).tolist())
    sizes = [len(resampled(trace, seed, method)) for seed in range(30)]
    assert np.mean(sizes) == pytest.approx(share * 3000, rel=0.02)
    assert len(set(sizes)) > 5


def test_a_window_that_is_drawn_twice_does_not_hit_its_own_prefixes() -> None:
    trace = trace_of([float(i) for i in range(240)], blocks=[[i, 1000 + i] for i in range(240)])
    for seed in range(5):
        sample = resampled(trace, seed, Resampling.BLOCKS)
        found = [block for chain in chains(sample) for block in chain]
        assert len(set(found)) == len(found)
        assert len(set(sample.session.tolist())) == len(sample)


def test_kept_sessions_are_whole_and_batches_stay_together() -> None:
    # Every run begins with the system prompt 7; then runs of one conversation share the next block.
    chain = [[7, 10 + i // 5, 1000 + i] for i in range(1000)]
    trace = trace_of([3.0 * (i // 10) for i in range(1000)], blocks=chain)
    groups = prefix_sessions(trace)
    assert len(set(groups.tolist())) == 200
    sample = resampled(trace, 3)
    conversations = [found[1] for found in chains(sample)]
    assert set(np.unique(conversations, return_counts=True)[1].tolist()) == {5}
    moments = {}
    for arrival, number in zip(sample.arrival, sample.stages.prompt_tokens, strict=True):
        moments.setdefault((int(number) - 1) // 10, set()).add(float(arrival))
    assert {len(times) for times in moments.values()} == {1}


def test_no_resampling_is_the_trace_itself() -> None:
    trace = trace_of([0.0, 1.0])
    assert resampled(trace, 9, Resampling.NONE) is trace
