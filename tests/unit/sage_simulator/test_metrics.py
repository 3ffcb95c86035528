"""Every figure of a report, recomputed by hand."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_simulator.fairness import Served, fairness, jain_index
from sage_simulator.metrics import level, of_histogram, percentiles, run_times
from sage_simulator.traces import Labels
from sage_simulator.workload import Workload


def workload_of(
    arrival: list[float],
    stage_start: list[int],
    output: list[int],
    *,
    ttft: float = inf,
    tpot: float = inf,
    e2e: float = inf,
) -> Workload:
    runs, stages = len(arrival), len(output)
    f8, u4 = np.float64, np.uint32
    return Workload(
        name="w",
        span=10.0,
        pools=("p",),
        tenant=Labels.same("t", runs),
        work_class=Labels.same("c", runs),
        arrival=np.array(arrival, f8),
        tier=np.zeros(runs, np.uint8),
        may_shed=np.ones(runs, np.uint8),
        budget=np.full(runs, inf),
        stage_start=np.array(stage_start, u4),
        pool=np.zeros(stages, u4),
        prompt_tokens=np.full(stages, 10, u4),
        output_tokens=np.array(output, u4),
        max_tokens=np.zeros(stages, u4),
        items=np.ones(stages, u4),
        ttft_slo=np.full(stages, ttft),
        tpot_slo=np.full(stages, tpot),
        e2e_slo=np.full(stages, e2e),
        downstream=np.zeros(stages, f8),
        route=np.zeros(stages, np.uint64),
        block_start=np.zeros(stages + 1, u4),
        blocks=np.empty(0, np.uint64),
        block_tokens=0,
        num_unservable=0,
    )


def columns(rows: list[tuple[float, float, float, float, int]]) -> dict[str, np.ndarray]:
    names = ("submitted_at", "dispatched_at", "first_token_at", "finished_at")
    found = {name: np.array([row[i] for row in rows], np.float64) for i, name in enumerate(names)}
    return found | {"outcome": np.array([row[4] for row in rows], np.uint8)}


def test_latencies_count_from_the_scheduled_send() -> None:
    workload = workload_of([1.0], [0, 1], [5])
    times = run_times(workload, columns([(1.5, 2.0, 3.0, 5.0, 0)]))
    assert times.ttft[0] == 2.0
    assert times.e2e[0] == 4.0
    assert times.tpot[0] == 0.5  # (4 - 2) / (5 - 1)
    assert times.queue[0] == 0.5
    assert times.engine[0] == 3.0


def test_a_pipeline_is_judged_at_its_last_stage_and_its_waits_add_up() -> None:
    workload = workload_of([0.0], [0, 2], [0, 2], ttft=5.0)
    times = run_times(workload, columns([(0, 1, nan, 2, 0), (2.5, 3, 4, 6, 0)]))
    assert (times.ttft[0], times.e2e[0], times.tpot[0]) == (4.0, 6.0, 2.0)
    assert (times.queue[0], times.engine[0]) == (1.5, 4.0)
    assert times.is_good[0]


def test_the_first_token_of_batch_work_is_its_completion() -> None:
    times = run_times(workload_of([0.0], [0, 1], [0], e2e=1.0), columns([(0, 0.1, nan, 0.9, 0)]))
    assert times.ttft[0] == times.e2e[0] == 0.9
    assert np.isnan(times.tpot[0])
    assert times.is_good[0]


@pytest.mark.parametrize(
    ("targets", "is_good"),
    [
        ({}, True),
        ({"ttft": 2.0, "tpot": 0.5, "e2e": 4.0}, True),
        ({"ttft": 1.99}, False),
        ({"tpot": 0.49}, False),
        ({"e2e": 3.99}, False),
    ],
)
def test_good_means_within_every_target(targets: dict[str, float], is_good: bool) -> None:
    workload = workload_of([1.0], [0, 1], [5], **targets)
    assert run_times(workload, columns([(1.5, 2.0, 3.0, 5.0, 0)])).is_good[0] == is_good


def test_attainment_is_of_submitted_runs_and_a_run_is_what_stopped_it() -> None:
    workload = workload_of([0.0] * 5, [0, 1, 2, 3, 4, 6], [1] * 6)
    rows = [
        (0, 0, 1, 1, 0), (0, nan, nan, nan, 1), (0, 0, 1, nan, 2), (0, 0, 1, nan, 3),
        (0, nan, nan, nan, 1), (nan, nan, nan, nan, 3),
    ]  # fmt: skip
    times = run_times(workload, columns(rows))
    found = level(times, workload.span)
    assert (found.submitted, found.finished, found.shed, found.failed, found.unfinished) == (5, 1, 2, 1, 1)
    assert (found.good, found.attainment, found.goodput) == (1, 0.2, 0.1)
    assert found.ttft.count == 3  # whoever had a first token
    assert found.e2e.count == 1


@given(st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=200))
def test_percentiles_of_a_histogram_are_within_a_bin_of_the_exact_ones(values: list[float]) -> None:
    edges = np.geomspace(1e-6, 1e4, 1000)
    counts, _ = np.histogram(values, edges)
    found, exact = of_histogram(edges, counts.astype(np.uint64)), percentiles(np.array(values))
    step = edges[1] / edges[0]
    assert found.count == exact.count
    assert exact.mean / step <= found.mean <= exact.mean * step
    assert exact.max <= found.max <= exact.max * step * 1.001
    for name in ("p50", "p90", "p99"):
        # Between the order statistics around the exact one, give or take a bin.
        low = np.percentile(values, float(name[1:]), method="inverted_cdf") / step / 1.001
        assert low <= getattr(found, name) <= max(values) * step


def test_no_values_have_no_percentiles() -> None:
    assert percentiles(np.array([nan])).count == 0
    assert np.isnan(of_histogram(np.array([0.0, 1.0]), np.zeros(1, np.uint64)).p99)


def served_of(rows: list[tuple[int, float, float, float, float, float]], for_ever: bool = False) -> Served:
    columns = [np.array([row[i] for row in rows], np.float64) for i in range(6)]
    tenant, submitted, first, finished, prompt, output = columns
    return Served(
        tenant.astype(np.uint32), submitted, first, finished, np.isnan(first) & for_ever, prompt, output
    )


@given(st.lists(st.floats(0.001, 1e3), min_size=1, max_size=20))
def test_jains_index_is_one_for_equals_and_between_one_nth_and_one(values: list[float]) -> None:
    found = jain_index(np.array(values))
    assert 1 / len(values) - 1e-9 <= found <= 1 + 1e-9
    assert jain_index(np.full(len(values), values[0])) == pytest.approx(1.0)


def test_two_tenants_who_wait_and_get_the_same_are_served_fairly() -> None:
    # Each has one run per second, all submitted at once: somebody of both waits all the time.
    rows = [(tenant, 0.0, i + 1.0, i + 1.5, 10.0, 20.0) for i in range(60) for tenant in (0, 1)]
    found = fairness(("a", "b"), served_of(rows), np.array([1.0, 1.0]))
    assert found.jain_service == pytest.approx(1.0)
    assert found.max_service_gap == pytest.approx(0.0, abs=1e-6)
    assert found.jain_attainment == 1.0


def test_a_tenant_who_waits_while_another_is_served_shows_as_gap_and_index() -> None:
    # a is served for 30 s while b waits, then b is.
    rows = [(0, 0.0, i + 1.0, i + 1.0, 10.0, 0.0) for i in range(60)]
    rows += [(1, 0.0, 31.0 + i, 31.0 + i, 10.0, 0.0) for i in range(30)]
    found = fairness(("a", "b"), served_of(rows), np.array([1.0, 0.5]))
    assert found.max_service_gap == pytest.approx(300, rel=0.1)
    assert found.gap_tenants == ("a", "b")
    assert found.jain_attainment == pytest.approx(0.9)
    assert found.jain_service is not None
    assert found.jain_service < 1.0


def test_without_two_who_wait_there_is_nothing_to_compare() -> None:
    one = served_of([(0, 0.0, 5.0, 6.0, 1.0, 1.0)])
    assert fairness(("a",), one, np.array([1.0])).jain_attainment is None
    quick = served_of([(0, 0.0, 0.1, 6.0, 1.0, 1.0), (1, 3.0, 3.1, 6.0, 1.0, 1.0)])
    found = fairness(("a", "b"), quick, np.array([1.0, 1.0]))
    assert (found.jain_service, found.max_service_gap, found.jain_attainment) == (None, None, 1.0)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.floats(0, 50),
            st.floats(0.01, 20),
            st.floats(0, 20),
            st.floats(0, 9),
            st.floats(0, 9),
        ),
        min_size=2,
        max_size=30,
    )
)
def test_all_service_is_counted_once(rows: list[tuple[int, float, float, float, float, float]]) -> None:
    from sage_simulator.fairness import _service

    served = served_of([(t, s, s + w, s + w + d, p, o) for t, s, w, d, p, o in rows])
    edges = np.linspace(0, 100, 57)
    total = _service(served, np.ones(len(rows), np.bool_), edges).sum()
    assert total == pytest.approx(sum(row[4] + row[5] for row in rows), abs=1e-6, rel=1e-6)
