"""Measured runs: read, replayed on the engine model, and what they say about the host; the gate on the shipped data."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sage_policy import EngineProfile
from sage_simulator import (
    FileMistake,
    Fleet,
    FleetInstance,
    Network,
    WorkClass,
    WorkloadOptions,
    build_workload,
    simulate,
)
from sage_simulator.measured_run import MeasuredRun, calibrated_host, read_measured_run, replayed
from sage_simulator.measured_tables import fit_layers

DATA = Path(__file__).parents[3] / "loadtests" / "traces" / "costmodel_llmservingsim"
PROFILE = EngineProfile(
    a0=0.01, a1=1e-5, a2=1e-7, m0=0.01, m1=5e-5, m3=1e-9, max_sequences=16, kv_tokens=8192
)


@pytest.fixture
def run():
    rng = np.random.default_rng(7)
    count = 60
    return MeasuredRun(
        name="made up",
        arrival=np.concatenate([[0.0], np.cumsum(rng.exponential(0.05, count - 1))]),
        prompt_tokens=rng.integers(10, 900, count).astype(np.uint32),
        output_tokens=rng.integers(1, 120, count).astype(np.uint32),
        first_token=np.zeros(count),
        last_token=np.zeros(count),
    )


def measured_with(run, profile):
    times = replayed(profile, run)
    return MeasuredRun(
        run.name,
        run.arrival,
        run.prompt_tokens,
        run.output_tokens,
        times.ttft + run.arrival,
        times.e2e + run.arrival,
    )


def mean_tpot(latencies):
    return float(np.nanmean(latencies.tpot))


@pytest.mark.parametrize("host", [0.0, 0.0007, 0.004])
def test_with_the_host_overhead_that_is_found_the_mean_time_per_token_is_the_measured_one(run, host):
    measured = measured_with(run, msgspec.structs.replace(PROFILE, host=host))
    found = msgspec.structs.replace(PROFILE, host=calibrated_host(PROFILE, measured))
    assert mean_tpot(replayed(found, run)) == pytest.approx(mean_tpot(measured.latencies), rel=5e-3)
    assert found.host == pytest.approx(host, rel=0.1)


def test_a_profile_that_is_slower_than_the_run_gets_no_host_overhead(run):
    slower = msgspec.structs.replace(PROFILE, a0=0.02, m0=0.02)
    assert calibrated_host(slower, measured_with(run, PROFILE)) == 0.0


def test_the_whole_simulator_gives_the_same_times_as_the_engine_model_alone(run):
    engine = FleetInstance("e/0", "e", "llm", "gpu", False, True, len(run), 0.0, PROFILE, 0.0, 1.0)
    fleet = Fleet("one", (engine,), network=Network(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    workload = build_workload(run.trace(), fleet, WorkloadOptions(classes=(WorkClass("all"),)))
    whole, alone = simulate(workload, fleet, "round-robin", check=True).times, replayed(PROFILE, run)
    assert whole.ttft == pytest.approx(alone.ttft, abs=1e-9)
    assert whole.e2e == pytest.approx(alone.e2e, abs=1e-9)


def test_a_single_token_has_no_time_per_token(run):
    times = replayed(PROFILE, run)
    assert (np.isnan(times.tpot) == (run.output_tokens == 1)).all()


def test_both_clocks_of_a_run_become_one(tmp_path):
    names = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")
    rows = [
        dict(zip(names, (5, 2, 1010.5, 7.52, 8.0, 9.0), strict=True)),
        dict(zip(names, (4, 3, 1010.0, 7.001, 7.5, 8.5), strict=True)),
    ]
    (tmp_path / "x__requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_measured_run(tmp_path, "x")
    assert run.arrival.tolist() == pytest.approx([0.0, 0.5])
    assert run.prompt_tokens.tolist() == [4, 5]
    # The engine's clock is 1003 seconds less one millisecond behind: the shorter of the two ways takes no time.
    assert run.first_token.tolist() == pytest.approx([0.499, 0.999])


def test_a_row_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "requests.jsonl").write_text('{"input_toks": 0}\n')
    with pytest.raises(FileMistake, match=r"line 1: input_toks is 0; expected a whole number from 1"):
        read_measured_run(tmp_path, "")
    (tmp_path / "requests.jsonl").write_text("")
    with pytest.raises(FileMistake, match="one request per line"):
        read_measured_run(tmp_path, "")


def test_each_measured_run_is_met_with_the_host_overhead_of_the_other():
    limits = {
        "RTX4090": EngineProfile(max_sequences=256, kv_tokens=41_408),
        "RTXPRO6000": EngineProfile(max_sequences=128, max_context=131_072, kv_tokens=559_040),
    }
    runs = {name: read_measured_run(DATA, name) for name in limits}
    fits = {name: fit_layers(DATA, name, limits[name], num_layers=32) for name in limits}
    hosts = {name: calibrated_host(fits[name].profile, runs[name]) for name in limits}
    for name, other in (("RTX4090", "RTXPRO6000"), ("RTXPRO6000", "RTX4090")):
        found = replayed(msgspec.structs.replace(fits[name].profile, host=hosts[other]), runs[name])
        for metric in ("ttft", "tpot", "e2e"):
            measured, simulated = getattr(runs[name].latencies, metric), getattr(found, metric)
            assert abs(simulated.mean() / measured.mean() - 1) < 0.05, (name, metric)
            p99 = np.percentile(simulated, 99) / np.percentile(measured, 99)
            assert abs(p99 - 1) < 0.10, (name, metric)
