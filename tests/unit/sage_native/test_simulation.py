"""Whole simulations: what is conserved under any policy and any failures, what a policy is told, what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_native import (
    ConfiguredPolicy,
    InstanceSpec,
    PythonPolicy,
    Simulation,
    SimulationOptions,
    SimulationResult,
    Workload,
)

FINISHED, SHED, FAILED, UNFINISHED = range(4)
DISPATCH, SHED_COMMAND, ABORT, SET_TIMER = range(4)
NO_INSTANCE = 2**32 - 1

COST = {"a0": 0.0169, "a1": 4.2e-5, "a2": 1.49e-7, "m0": 0.0142, "m1": 7.7e-5, "m2": 3.4e-7, "m3": 5.4e-9}

Command = tuple[Any, ...]
Stage = tuple[int, int, int, int]
"""Pool, prompt tokens, output tokens, items."""


def command(
    kind: int, request: int = 0, instance: int = NO_INSTANCE, batch: int = 0, at: float = 0.0
) -> Command:
    decision = ("", 0.0, 0, 0.25, 0.5, np.nan, [])
    return (kind, request, instance, 0, batch, 0, 1.5, at, 0, decision)


class RandomPolicy:
    """Obeys the rules and nothing else: dispatches, holds, refuses and aborts by chance."""

    def __init__(self, seed: int, *, sheds: bool = False, aborts: bool = False) -> None:
        self.random = random.Random(seed)
        self.sheds, self.aborts = sheds, aborts
        self.instances: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.running: dict[int, int] = {}
        self.log: list[tuple[Any, ...]] = []

    def submitted(self, now: float, request: int, pool: int, *rest: Any) -> list[Command]:
        self.log.append(("submitted", now, request, pool, *rest))
        self.held[request] = pool
        return self.decide(now)

    def first_token(self, now: float, request: int, num_cached: int) -> list[Command]:
        self.log.append(("first_token", now, request, num_cached))
        if self.aborts and self.random.random() < 0.1 and request in self.running:
            return [command(ABORT, request, self.running[request])]
        return self.decide(now)

    def started(self, now: float, request: int) -> list[Command]:
        self.log.append(("started", now, request))
        return []

    def finished(self, now: float, request: int, num_tokens: int) -> list[Command]:
        self.log.append(("finished", now, request, num_tokens))
        self.running.pop(request, None)
        return self.decide(now)

    def instance_up(self, now: float, instance: int, pool: int, *_: Any) -> list[Command]:
        self.log.append(("up", now, instance))
        self.instances[instance] = pool
        return self.decide(now)

    def instance_down(self, now: float, instance: int, pool: int, is_lost: bool) -> list[Command]:
        self.log.append(("down", now, instance, is_lost))
        self.instances.pop(instance, None)
        if is_lost:
            self.running = {key: where for key, where in self.running.items() if where != instance}
        return []

    def telemetry(self, now: float, instance: int, pool: int, *rest: Any) -> list[Command]:
        self.log.append(("telemetry", now, instance, *rest))
        return []

    def timer(self, now: float) -> list[Command]:
        self.log.append(("timer", now))
        return self.decide(now)

    def decide(self, now: float) -> list[Command]:
        commands = []
        for request, pool in list(self.held.items()):
            choices = [instance for instance, of in self.instances.items() if of == pool]
            chance = self.random.random()
            if self.sheds and chance < 0.05:
                commands.append(command(SHED_COMMAND, request))
            elif choices and chance < 0.7:
                self.running[request] = self.random.choice(choices)
                commands.append(command(DISPATCH, request, self.running[request]))
            else:
                continue
            del self.held[request]
        if self.held:
            commands.append(command(SET_TIMER, at=now + 0.05))
        return commands


def workload(arrivals: list[float], runs: list[list[Stage]], **columns: Any) -> Workload:
    stages = [stage for run in runs for stage in run]
    num_runs, num_stages = len(runs), len(stages)
    pool, prompt, output, items = np.array(stages, np.uint32).reshape(-1, 4).T.copy()
    never = np.full(num_stages, np.inf)
    values: dict[str, Any] = {
        "arrival": np.array(arrivals, np.float64),
        "tenant": np.zeros(num_runs, np.uint32),
        "tier": np.zeros(num_runs, np.uint8),
        "may_shed": np.ones(num_runs, np.uint8),
        "budget": np.full(num_runs, np.inf),
        "stage_start": np.cumsum([0, *map(len, runs)], dtype=np.uint32),
        "pool": pool,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "max_tokens": np.zeros(num_stages, np.uint32),
        "items": items,
        "ttft_slo": never,
        "tpot_slo": never,
        "e2e_slo": never,
        "downstream": np.zeros(num_stages),
        "route": np.zeros(num_stages, np.uint64),
        "block_start": np.zeros(num_stages + 1, np.uint32),
        "blocks": np.zeros(0, np.uint64),
    }
    return Workload(**(values | columns))


def instances(num_generate: int, num_batched: int = 0, **options: Any) -> list[InstanceSpec]:
    values = {**COST, "kv_tokens": 6400, "max_sequences": 16, "max_step_tokens": 512} | options
    return [
        InstanceSpec(
            id=place,
            pool=int(place >= num_generate),
            device=place,
            is_batched=place >= num_generate,
            **values,
        )
        for place in range(num_generate + num_batched)
    ]


@dataclass(frozen=True)
class Scenario:
    arrivals: list[float]
    runs: list[list[Stage]]
    num_generate: int
    num_batched: int
    options: dict[str, Any]
    fleet: dict[str, Any]
    seed: int
    sheds: bool
    aborts: bool


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    num_generate, num_batched = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    generate = st.tuples(st.just(0), st.integers(1, 5000), st.integers(1, 200), st.just(1))
    batch = st.tuples(st.just(1), st.integers(1, 2000), st.just(0), st.integers(1, 30))
    runs = draw(st.lists(st.lists(generate | batch, min_size=1, max_size=3), min_size=1, max_size=25))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0]), min_size=len(runs), max_size=len(runs)))
    times = st.floats(0, 20).map(lambda at: round(at, 2))
    whom = st.integers(0, num_generate + num_batched - 1)
    kinds = st.sampled_from(["down", "drain", "up", "slow", "normal"])
    disturbances = draw(st.lists(st.tuples(times, whom, kinds, st.sampled_from([0.5, 2.0, 3.0])), max_size=8))
    # In the end everybody is back, so that every run can end.
    disturbances += [(30.0, place, "up", 1.0) for place in range(num_generate + num_batched)]
    latencies = st.sampled_from([0.0, 0.001, 0.3])
    return Scenario(
        np.cumsum(gaps).tolist(),
        runs,
        num_generate,
        num_batched,
        {
            "seed": draw(st.integers(0, 9)),
            "dispatch_latency": draw(latencies),
            "report_latency": draw(latencies),
            "hop_latency": draw(latencies),
            "detection_latency": draw(latencies),
            "telemetry_interval": draw(st.sampled_from([0.0, 0.7])),
            "telemetry_latency": draw(latencies),
            "max_attempts": draw(st.integers(1, 4)),
            "disturbances": disturbances,
            "send_started": draw(st.booleans()),
        },
        {
            "noise_sigma": draw(st.sampled_from([0.0, 0.1])),
            "async_scheduling": draw(st.booleans()),
            "watermark": draw(st.sampled_from([0.0, 0.1])),
        },
        draw(st.integers(0, 99)),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def simulate(scenario: Scenario) -> tuple[SimulationResult, RandomPolicy]:
    policy = RandomPolicy(scenario.seed, sheds=scenario.sheds, aborts=scenario.aborts)
    result = Simulation(
        PythonPolicy(policy),
        instances(scenario.num_generate, scenario.num_batched, **scenario.fleet),
        workload(scenario.arrivals, scenario.runs),
        SimulationOptions(**scenario.options, check=True),
    ).run()
    return result, policy


@settings(max_examples=40, deadline=None)
@given(scenarios())
def test_every_run_ends_once_and_no_token_is_lost_whatever_happens(scenario: Scenario) -> None:
    result, policy = simulate(scenario)  # raises where blocks, tokens or requests are not conserved
    offsets = np.cumsum([0, *map(len, scenario.runs)])
    for begin, end in pairwise(offsets):
        outcomes = result.outcome[begin:end].tolist()
        last = next(
            (place for place, outcome in enumerate(outcomes) if outcome != FINISHED), len(outcomes) - 1
        )
        assert outcomes[last] in (
            (FINISHED, SHED, FAILED) if scenario.sheds or scenario.aborts else (FINISHED, FAILED)
        )
        assert set(outcomes[last + 1 :]) <= {UNFINISHED}
        assert np.isnan(result.submitted_at[begin + last + 1 : end]).all()
    done = result.outcome == FINISHED
    assert (result.first_token_at[done] >= result.dispatched_at[done] - 40).all()
    assert (result.finished_at[done] >= result.first_token_at[done]).all()
    assert (result.num_attempts <= scenario.options["max_attempts"]).all()
    told = [event[1] for event in policy.log]
    assert told == sorted(told)
    ids = [event[2] for event in policy.log if event[0] == "submitted"]
    assert len(set(ids)) == len(ids)


@settings(max_examples=10, deadline=None)
@given(scenarios())
def test_the_same_scenario_and_seed_give_the_same_result(scenario: Scenario) -> None:
    (first, said), (second, again) = simulate(scenario), simulate(scenario)
    assert said.log == again.log
    assert first.num_events == second.num_events
    np.testing.assert_array_equal(first.finished_at, second.finished_at)


def run_one(policy: RandomPolicy, **options: Any) -> SimulationResult:
    return Simulation(
        PythonPolicy(policy),
        instances(1),
        workload([1.0], [[(0, 100, 5, 1)]]),
        SimulationOptions(**options, check=True),
    ).run()


def test_events_reach_the_policy_a_report_latency_after_the_engine() -> None:
    policy = RandomPolicy(1)
    result = run_one(policy, dispatch_latency=0.25, report_latency=0.5, send_started=True)
    times = {event[0]: event[1] for event in policy.log}
    dispatched = float(result.dispatched_at[0])
    prefill = COST["m0"] + 100 * COST["m1"] + COST["m3"] * 100 * 50
    assert times["started"] == pytest.approx(dispatched + 0.75)
    assert times["first_token"] == pytest.approx(dispatched + 0.75 + prefill)
    assert result.first_token_at[0] == times["first_token"]
    assert result.finished_at[0] == times["finished"]
    assert next(event for event in policy.log if event[0] == "finished")[3] == 5
    assert (result.predicted_ttft[0], result.predicted_tpot[0]) == (0.25, 0.5)


def test_a_policy_is_never_told_how_long_an_answer_will_be() -> None:
    policy = RandomPolicy(1)
    Simulation(PythonPolicy(policy), instances(1), workload([0.0], [[(0, 100, 77, 1)]])).run()
    submitted = next(event for event in policy.log if event[0] == "submitted")
    assert 100 in submitted
    assert 77 not in submitted


def test_telemetry_says_what_was_true_its_latency_ago() -> None:
    policy = RandomPolicy(1)
    Simulation(
        PythonPolicy(policy),
        instances(1),
        workload([0.0, 0.0], [[(0, 100, 150, 1)]] * 2),
        SimulationOptions(telemetry_interval=1.0, telemetry_latency=0.4),
    ).run()
    reports = [event for event in policy.log if event[0] == "telemetry"]
    assert [event[1] for event in reports[:2]] == pytest.approx([1.4, 2.4])
    assert reports[0][3] == 2
    assert 0 < reports[0][5] < 1


def test_a_lost_request_comes_back_as_a_new_one_that_keeps_its_tokens() -> None:
    policy = RandomPolicy(3)
    result = Simulation(
        PythonPolicy(policy),
        instances(2),
        workload([0.0] * 8, [[(0, 100, 150, 1)]] * 8, max_tokens=np.full(8, 400, np.uint32)),
        SimulationOptions(disturbances=[(1.0, 0, "down", 1.0)], check=True),
    ).run()
    assert result.outcome.tolist() == [FINISHED] * 8
    assert result.num_tokens.tolist() == [150] * 8
    num_lost = int(result.instance_num_lost[0])
    again = [event for event in policy.log if event[0] == "submitted"][8:]
    assert len(again) == num_lost > 0
    for event in again:
        num_prompt, max_tokens = event[14:16]
        assert num_prompt > 100
        assert num_prompt + max_tokens == 500
    down = next(place for place, event in enumerate(policy.log) if event[0] == "down")
    assert all(policy.log.index(event) > down for event in again)


def test_prefixes_are_reused_on_the_instance_that_has_them() -> None:
    blocks = np.arange(4, dtype=np.uint64)
    result = Simulation(
        ConfiguredPolicy(),
        instances(1, prefix_block=512),
        workload(
            [0.0, 5.0],
            [[(0, 2048, 5, 1)]] * 2,
            block_start=np.array([0, 4, 8], np.uint32),
            blocks=np.concatenate([blocks, blocks]),
        ),
        SimulationOptions(check=True),
    ).run()
    assert result.cached_tokens.tolist() == [0, 2048 - 16]  # the last block is computed for its last token
    assert result.instance_cached_tokens.tolist() == [2032]


@pytest.mark.parametrize("placement", range(10))
def test_native_policies_serve_everything(placement: int) -> None:
    random_lengths = np.random.default_rng(placement)
    runs = [[(0, int(p), int(o), 1)] for p, o in random_lengths.integers(1, 400, (60, 2))]
    result = Simulation(
        ConfiguredPolicy(placement=placement, shed=False),
        instances(3, noise_sigma=0.1),
        workload(np.linspace(0, 5, 60).tolist(), runs),
        SimulationOptions(dispatch_latency=0.001, report_latency=0.001, check=True, time_decisions=True),
    ).run()
    assert result.outcome.tolist() == [FINISHED] * 60
    assert result.itl_counts.sum() == result.num_tokens.sum() - 60
    assert result.decision_counts.sum() >= 3 * 60
    assert len(result.histogram_edges) == len(result.itl_counts) + 1


class Broken(RandomPolicy):
    def __init__(self, answer: Callable[[int], list[Command]]) -> None:
        super().__init__(0)
        self.answer = answer

    def submitted(self, now: float, request: int, pool: int, *rest: Any) -> list[Command]:
        return self.answer(request)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda request: [command(DISPATCH, request + 1, 0)], "a request that nobody submitted"),
        (lambda request: [command(DISPATCH, request, 5)], "an unknown instance"),
        (lambda request: [command(DISPATCH, request, 1)], "an instance of another pool"),
        (lambda request: [command(DISPATCH, request, 0)] * 2, "a request that does not wait"),
        (lambda request: [command(SHED_COMMAND, request)] * 2, "sheds a request that is over"),
    ],
)
def test_a_command_that_makes_no_sense_is_an_error_when_checked(
    answer: Callable[[int], list[Command]], complaint: str
) -> None:
    simulation = Simulation(
        PythonPolicy(Broken(answer)),
        instances(1, 1),
        workload([0.0], [[(0, 10, 5, 1)]]),
        SimulationOptions(check=True),
    )
    with pytest.raises(RuntimeError, match=complaint):
        simulation.run()


def test_an_error_in_a_policy_comes_out_of_run() -> None:
    def answer(request: int) -> list[Command]:
        raise LookupError("no such thing")

    simulation = Simulation(PythonPolicy(Broken(answer)), instances(1), workload([0.0], [[(0, 10, 5, 1)]]))
    with pytest.raises(LookupError, match="no such thing"):
        simulation.run()


def test_a_simulation_runs_once() -> None:
    simulation = Simulation(ConfiguredPolicy(), instances(1), workload([0.0], [[(0, 10, 5, 1)]]))
    simulation.run()
    with pytest.raises(RuntimeError, match="runs once"):
        simulation.run()


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"arrival": np.array([2.0, 1.0])}, r"arrival\[1\] is 1\.0+; expected finite times that ascend"),
        ({"arrival": np.array([0.0, np.nan])}, r"arrival\[1\] is nan"),
        (
            {"arrival": np.array([0, 1])},
            "arrival is int64 with 1 dimensions; expected a contiguous float64 column",
        ),
        ({"tenant": np.zeros(3, np.uint32)}, "size of tenant is 3; expected 2"),
        ({"tier": np.array([0, 3], np.uint8)}, r"tier\[1\] is 3; expected 0, 1 or 2"),
        ({"stage_start": np.array([0, 0, 2], np.uint32)}, r"stage_start\[1\] is 0; expected at least 1"),
        ({"block_start": np.array([0, 1, 1], np.uint32)}, r"block_start\[2\] is 1; expected 0"),
        ({"items": np.array([1, 0], np.uint32)}, r"items\[1\] is 0; expected at least 1"),
        ({"ttft_slo": np.array([1.0, -1.0])}, r"ttft_slo\[1\] is -1\.0+; expected 0 or more"),
    ],
)
def test_a_workload_that_cannot_be_is_refused_by_column_and_row(
    columns: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        workload([0.0, 1.0], [[(0, 10, 5, 1)]] * 2, **columns)


def test_scenarios_that_cannot_be_are_refused() -> None:
    with pytest.raises(TypeError, match="needs the column arrival"):
        Workload()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="has no column colour"):
        workload([0.0], [[(0, 10, 5, 1)]], colour=np.zeros(1))
    with pytest.raises(ValueError, match="disturbance kind is 'gone'; expected one of down, drain, up"):
        SimulationOptions(disturbances=[(0.0, 0, "gone", 1.0)])
    with pytest.raises(ValueError, match="disturbance of instance 4; expected one below 1"):
        Simulation(
            ConfiguredPolicy(),
            instances(1),
            workload([0.0], [[(0, 10, 5, 1)]]),
            SimulationOptions(disturbances=[(0.0, 4, "down", 1.0)]),
        )
    with pytest.raises(ValueError, match="noise_sigma"):
        Simulation(ConfiguredPolicy(), instances(1, noise_sigma=9.0), workload([0.0], [[(0, 10, 5, 1)]]))
