"""Simulations from end to end: what comes out is complete, repeatable, and the same however it is run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sage_core import ConfigurationError
from sage_policy import POLICIES, EngineProfile
from sage_simulator import (
    Disturbance,
    DisturbanceKind,
    Fleet,
    FleetInstance,
    Network,
    Outcome,
    Trace,
    Workload,
    WorkloadOptions,
    build_workload,
    capacity,
    policy_choice,
    read_trace,
    simulate,
    sweep,
    with_tenants,
)
from sage_simulator.plots import draw_plots
from simulator_files import rag_folder, write

CHAT = EngineProfile(a0=0.01, a1=1e-4, m0=0.012, m1=5e-5, kv_tokens=20_000, max_sequences=32)
BATCH = EngineProfile(m0=0.003, m1=1e-6, m4=1e-4, max_sequences=32, max_step_tokens=4096)


def instances(pool: str, count: int, profile: EngineProfile) -> tuple[FleetInstance, ...]:
    return tuple(
        FleetInstance(
            f"{pool}/{i}", pool, pool, f"{pool}/{i}", pool != "llm", True, 1000, 1.0, profile, 0.05, 1.0
        )
        for i in range(count)
    )


FLEET = Fleet("two", instances("llm", 2, CHAT), network=Network(detection_latency=0.5))
_STEPS = [instances(pool, 1, BATCH) for pool in ("embed", "retrieve", "rerank")]
RAG = Fleet("rag", sum(_STEPS, instances("llm", 2, CHAT)))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    rng = np.random.default_rng(4)
    times = np.cumsum(rng.exponential(0.2, 300))
    rows = "".join(f"{t:.4f},{rng.integers(20, 1500)},{rng.integers(1, 80)}\n" for t in times)
    file = tmp_path_factory.mktemp("trace") / "b.csv"
    return read_trace(write(file, "Timestamp,Request tokens,Response tokens\n" + rows))


@pytest.fixture(scope="module")
def workload(trace: Trace) -> Workload:
    return build_workload(trace, FLEET)


def same(first: Outcome, second: Outcome) -> bool:
    return all(
        np.array_equal(first.stages[name], second.stages[name], equal_nan=True) for name in first.stages
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_serves_light_load_and_conserves_everything(policy: str, workload: Workload) -> None:
    report = simulate(workload, FLEET, policy, check=True).report
    assert report.policy == policy
    assert report.overall.submitted == len(workload) == 300
    assert report.overall.finished == 300
    assert report.overall.attainment > 0.9
    assert sum(use.finished for use in report.instances) == 300
    assert report.itl.count == int(np.maximum(workload.output_tokens - 1, 0).sum())
    assert report.pools["llm"].submitted == 300


def test_one_seed_is_one_simulation(workload: Workload) -> None:
    first, again = (simulate(workload, FLEET, "power-of-two", seed=3) for _ in range(2))
    assert same(first, again)
    assert not same(first, simulate(workload, FLEET, "power-of-two", seed=4))


def test_faster_engines_are_never_slower(workload: Workload) -> None:
    quick = replace(
        FLEET,
        instances=tuple(
            replace(found, noise_sigma=0.0, profile=EngineProfile(a0=0.001, m0=0.001, kv_tokens=20_000))
            for found in FLEET.instances
        ),
    )
    slow, fast = (simulate(workload, fleet, "round-robin").report.overall for fleet in (FLEET, quick))
    assert fast.ttft.p99 < slow.ttft.p50
    assert fast.e2e.mean < slow.e2e.mean


def test_a_dead_instance_costs_retries_and_its_return_helps(workload: Workload) -> None:
    down = Disturbance(20.0, 0, DisturbanceKind.DOWN)
    for_good = replace(FLEET, disturbances=(down,))
    for_a_while = replace(FLEET, disturbances=(down, Disturbance(25.0, 0, DisturbanceKind.UP)))
    lost, back = (simulate(workload, fleet, "hybrid", check=True).report for fleet in (for_good, for_a_while))
    assert lost.pools["llm"].retries > 0
    assert lost.instances[0].lost > 0
    assert lost.instances[0].finished < back.instances[0].finished
    assert lost.overall.finished + lost.overall.shed + lost.overall.failed == 300


def test_a_slow_instance_is_slow(workload: Workload) -> None:
    slow = replace(
        FLEET, disturbances=tuple(Disturbance(0.0, i, DisturbanceKind.SLOW, 3.0) for i in range(2))
    )
    usual, worse = (simulate(workload, fleet, "round-robin").report.overall for fleet in (FLEET, slow))
    assert worse.tpot.p50 > 2.5 * usual.tpot.p50


def test_a_rag_run_passes_all_its_pools(tmp_path: Path) -> None:
    trace = read_trace(rag_folder(tmp_path / "rag"))
    outcome = simulate(build_workload(trace, RAG), RAG, "hybrid", check=True)
    report = outcome.report
    assert report.overall.finished == 2
    assert {name: pool.finished for name, pool in report.pools.items()} == {
        "llm": 2, "embed": 2, "retrieve": 2, "rerank": 1,
    }  # fmt: skip
    stages = outcome.stages
    assert (stages["submitted_at"][1:3] > stages["finished_at"][0:2]).all()
    assert report.overall.ttft.p50 > 3 * 0.003


def test_early_stopping_says_so_and_bounds_the_work(workload: Workload) -> None:
    hard = replace(workload, ttft_slo=np.full(len(workload), 1e-6))
    report = simulate(hard, FLEET, "round-robin", max_bad=10).report
    assert report.stopped_early
    assert report.overall.good == 0
    full = simulate(hard, FLEET, "round-robin").report
    assert not full.stopped_early
    assert report.num_events < full.num_events
    # Fewer than that many bad runs do not stop it.
    assert not simulate(hard, FLEET, "round-robin", max_bad=301).report.stopped_early
    assert not simulate(workload, FLEET, "round-robin", max_bad=1).report.stopped_early


def test_decisions_are_timed_on_request(workload: Workload) -> None:
    assert simulate(workload, FLEET, "hybrid").report.decision.count == 0
    assert simulate(workload, FLEET, "hybrid", time_decisions=True).report.decision.count > 300


def test_tenants_are_reported_each(trace: Trace) -> None:
    shared = build_workload(with_tenants(trace, {"a": 2.0, "b": 1.0}, 0), FLEET)
    report = simulate(shared, FLEET, "hybrid").report
    assert set(report.tenants) == {"a", "b"}
    assert sum(found.submitted for found in report.tenants.values()) == 300
    assert report.fairness.jain_attainment is not None


OWN_POLICY = """
from sage_policy import Decision, Dispatch, InstanceUp, Submitted


class Alternate:
    name = "alternate"

    def __init__(self, seed=0):
        self.instances, self.turn = [], seed

    def handle(self, event, now):
        if isinstance(event, InstanceUp):
            self.instances.append(event.instance.instance_id)
        if isinstance(event, Submitted):
            self.turn += 1
            chosen = self.instances[self.turn % len(self.instances)]
            return [Dispatch(event.key, chosen, Decision("next", 0.0, 0))]
        return []
"""


def test_a_class_in_a_python_file_is_a_policy(tmp_path: Path, workload: Workload) -> None:
    file = write(tmp_path / "own.py", OWN_POLICY)
    choice = policy_choice(f"{file}:Alternate")
    outcome = simulate(workload, FLEET, choice)
    assert outcome.report.policy == f"{file}:Alternate"
    assert outcome.report.overall.finished == 300
    assert outcome.stages["instance"].tolist() == [(i + 1) % 2 for i in range(300)]


def test_an_unknown_policy_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hybrid"):
        policy_choice("best-ever")
    with pytest.raises(ConfigurationError, match=r"own\.py does not exist"):
        policy_choice(f"{tmp_path / 'own.py'}:A")


def test_capacity_is_where_attainment_crosses_the_target(trace: Trace) -> None:
    def work(rate: float, seed: int) -> Workload:
        return build_workload(trace, FLEET, WorkloadOptions(rate=rate, seed=seed))

    found = capacity(
        work, FLEET, "least-outstanding", low=1.0, high=200.0, tolerance=0.05, seeds=(1, 2), target=0.95
    )
    assert 1.0 < found.rate < 200.0
    assert not found.is_lower_bound
    at_capacity = [
        simulate(work(found.rate, seed), FLEET, "least-outstanding", seed=seed).report for seed in (1, 2)
    ]
    good = sum(report.overall.good for report in at_capacity) / sum(
        report.overall.submitted for report in at_capacity
    )
    assert good >= 0.95
    assert found.goodput == pytest.approx(np.mean([report.overall.goodput for report in at_capacity]))
    failed = min(probe.rate for probe in found.probes if not probe.is_sustained)
    assert found.rate < failed <= found.rate * 1.05 + 1e-9
    assert all(probe.attainment < 0.95 for probe in found.probes if not probe.is_sustained)

    assert capacity(work, FLEET, "random", low=1.0, high=2.0, target=0.5).is_lower_bound
    assert capacity(work, FLEET, "random", low=500.0, high=600.0, target=0.99).rate == 0.0
    with pytest.raises(ConfigurationError, match="0 < low <= high"):
        capacity(work, FLEET, "random", low=3.0, high=2.0)


def test_a_sweep_is_the_same_whatever_runs_at_a_time_and_can_be_drawn(trace: Trace, tmp_path: Path) -> None:
    def work(rate: float | None, seed: int) -> Workload:
        return build_workload(trace, FLEET, WorkloadOptions(rate=rate, seed=seed))

    policies = [policy_choice(name) for name in ("hybrid", "random")]
    done: list[int] = []
    points = [
        sweep(work, FLEET, policies, (5.0, 20.0), (0, 1), jobs=jobs, when_done=lambda: done.append(1))
        for jobs in (1, 3)
    ]
    assert len(done) == 16
    assert [(point.summary.policy, point.summary.rate) for point in points[0]] == [
        ("hybrid", 5.0), ("random", 5.0), ("hybrid", 20.0), ("random", 20.0),
    ]  # fmt: skip
    for one, three in zip(*points, strict=True):
        assert one.summary.attainment == three.summary.attainment
        assert np.array_equal(one.ttft, three.ttft, equal_nan=True)
        assert one.summary.attainment.min <= one.summary.attainment.mean <= one.summary.attainment.max
    files = draw_plots(points[0], tmp_path / "plots", "a title")
    assert [file.name for file in files] == [
        "attainment-vs-rate.png",
        "goodput-vs-rate.png",
        "cdf-5.png",
        "cdf-20.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_plots_without_matplotlib_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'sage-serve\[simulator\]'"):
        draw_plots([], tmp_path, "")
