"""What becomes of a trace on its way to the simulator: classes, targets, limits, estimates."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest

from sage_core import ConfigurationError
from sage_policy import EngineProfile, SloClass
from sage_simulator import (
    FileMistake,
    Fleet,
    FleetInstance,
    Moment,
    WorkClass,
    WorkloadOptions,
    build_workload,
    parse_class,
    read_classes,
    read_trace,
)
from simulator_files import rag_folder, write

CHAT = EngineProfile(a0=0.01, m0=0.02, m1=1e-4, max_context=4000, kv_tokens=3000, max_step_tokens=1000)
BATCH = EngineProfile(m0=0.005, m1=1e-5, m4=1e-3)


def instance(pool: str, profile: EngineProfile = BATCH, *, number: int = 0) -> FleetInstance:
    is_batched = pool != "llm"
    return FleetInstance(
        f"{pool}/{number}", pool, pool, f"{pool}/{number}", is_batched, True, 100, 1.0, profile, 0.0, 1.0
    )


FLEET = Fleet("f", (instance("llm", CHAT), instance("embed"), instance("retrieve"), instance("rerank")))


def burst(path: Path, rows: list[tuple[float, int, int]]) -> Path:
    text = "Timestamp,Request tokens,Response tokens\n" + "".join(f"{t},{i},{o}\n" for t, i, o in rows)
    return write(path / "b.csv", text)


def test_targets_follow_the_class_and_the_prompt(tmp_path: Path) -> None:
    trace = read_trace(burst(tmp_path, [(i, 100 * (i + 1), 10) for i in range(4)]))
    work = WorkClass("c", budget=30.0, slo=SloClass(2, 1.0, 1000.0, 0.05, 9.0, may_shed=False))
    found = build_workload(trace, FLEET, WorkloadOptions(classes=(work,)))
    assert found.ttft_slo == pytest.approx([1.1, 1.2, 1.3, 1.4])
    assert set(found.tpot_slo.tolist()) == {0.05}
    assert set(found.e2e_slo.tolist()) == {9.0}
    assert set(found.budget.tolist()) == {30.0}
    assert set(found.tier.tolist()) == {2}
    assert set(found.may_shed.tolist()) == {0}


def test_classes_get_their_shares_of_the_runs_that_end_in_their_pool(tmp_path: Path) -> None:
    trace = read_trace(burst(tmp_path, [(i, 10, 10) for i in range(5000)]))
    classes = (
        WorkClass("tight", 0.3, "llm", slo=SloClass(ttft=1.0)),
        WorkClass("relaxed", 0.6, "llm", slo=SloClass(ttft=5.0)),
        WorkClass("others", 1.0, slo=SloClass(e2e=1.0)),
    )
    found = build_workload(trace, FLEET, WorkloadOptions(classes=classes))
    assert np.bincount(found.work_class.code, minlength=3) / 5000 == pytest.approx(
        [1 / 3, 2 / 3, 0], abs=0.02
    )
    again = build_workload(trace, FLEET, WorkloadOptions(classes=classes))
    assert again.work_class.code.tolist() == found.work_class.code.tolist()
    with pytest.raises(ConfigurationError, match="no class is for runs that end in pool 'llm'"):
        build_workload(trace, FLEET, WorkloadOptions(classes=(WorkClass("e", pool="embed"),)))


def test_the_true_length_is_hidden_behind_one_cap(tmp_path: Path) -> None:
    trace = read_trace(burst(tmp_path, [(0, 10, 3), (1, 10, 100), (2, 10, 130)]))
    found = build_workload(trace, FLEET, WorkloadOptions(max_tokens=100))
    assert found.max_tokens.tolist() == [100, 100, 256]
    assert found.output_tokens.tolist() == [3, 100, 130]


def test_runs_that_no_instance_can_hold_are_left_out_and_the_rate_is_that_of_the_others(
    tmp_path: Path,
) -> None:
    trace = read_trace(burst(tmp_path, [(0, 2000, 10), (1, 2995, 10), (2, 10, 10), (3, 2990, 10)]))
    found = build_workload(trace, FLEET, WorkloadOptions(rate=6.0))
    assert found.num_unservable == 1
    assert found.prompt_tokens.tolist() == [2000, 10, 2990]
    assert found.rate == pytest.approx(6.0)
    with pytest.raises(ConfigurationError, match="no run of trace b fits"):
        build_workload(read_trace(burst(tmp_path, [(0, 2000, 9999)])), FLEET)


def test_a_pipeline_has_one_target_and_estimates_of_what_follows(tmp_path: Path) -> None:
    trace = read_trace(rag_folder(tmp_path / "rag"))
    found = build_workload(trace, FLEET, WorkloadOptions(downstream_scale=2.0))
    hop = 0.001  # dispatch and report
    generate = 0.02 + 310 * 1e-4 + hop
    rerank = 0.005 + 162 * 1e-5 + 2 * 1e-3 + hop
    retrieve = 0.005 + 6 * 1e-5 + 1e-3 + hop
    of_second = found.downstream[3:]
    assert of_second == pytest.approx(
        [2 * (retrieve + rerank + generate), 2 * (rerank + generate), 2 * generate, 0.0]
    )
    goal = 1.0 + 310 / 4000
    assert found.ttft_slo[3:].tolist() == [inf, inf, inf, goal]
    assert found.e2e_slo[3:].tolist() == [goal, goal, goal, inf]
    assert found.max_tokens[3:].tolist() == [0, 0, 0, 4096]
    assert found.last_stage.tolist() == [2, 6]


def test_pools_can_be_renamed_and_must_be_there(tmp_path: Path) -> None:
    trace = read_trace(burst(tmp_path, [(0, 10, 10), (1, 10, 10)]))
    other = Fleet(
        "g", (instance("embed"), FleetInstance(**{**_fields(instance("llm", CHAT)), "pool": "chat"}))
    )
    with pytest.raises(
        ConfigurationError, match="fleet g has no pool 'llm', which trace b needs; it has embed, chat"
    ):
        build_workload(trace, other)
    found = build_workload(trace, other, WorkloadOptions(pools={"llm": "chat"}))
    assert found.pool.tolist() == [1, 1]
    assert found.ttft_slo[0] < inf
    with pytest.raises(ConfigurationError, match="has no pool 'vision'"):
        build_workload(trace, other, WorkloadOptions(pools={"vision": "chat"}))


def _fields(found: FleetInstance) -> dict[str, object]:
    return {name: getattr(found, name) for name in FleetInstance.__slots__}


def test_the_same_options_give_the_same_workload_and_another_seed_another(tmp_path: Path) -> None:
    trace = read_trace(burst(tmp_path, [(i * 1.5, 10 + i, 10) for i in range(500)]))
    options = [WorkloadOptions(rate=5.0, begin=Moment(0.5, is_share=True), seed=seed) for seed in (1, 1, 2)]
    found = [build_workload(trace, FLEET, option) for option in options]
    assert found[0].arrival.tolist() == found[1].arrival.tolist() != found[2].arrival.tolist()
    assert all(one.prompt_tokens.min() >= 260 for one in found)
    assert found[2].rate == pytest.approx(5.0)


def test_a_class_is_read_from_its_short_form() -> None:
    found = parse_class(
        "tight:share=30%,ttft=500ms+in/8000,tpot=40ms,e2e=1m,budget=2m,tier=normal,may_shed=false,pool=x"
    )
    assert found == WorkClass("tight", 0.3, "x", 120.0, SloClass(1, 0.5, 8000.0, 0.04, 60.0, may_shed=False))
    assert parse_class("plain") == WorkClass("plain")
    assert parse_class("t:ttft=2").slo.ttft == 2.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("t:ttfft=1s", "unknown key 'ttfft'; expected one of share, pool, ttft"),
        ("t:ttft", "'ttft' has no value"),
        ("t:ttft=soon", "ttft is 'soon'; expected a duration, or one and a rate"),
        ("t:ttft=1s+in/0", "ttft is '1s+in/0'"),
        ("t:share=2", "share is '2'; expected a share such as 0.3 or 30%"),
        ("t:tier=first", "tier is 'first'; expected one of interactive, normal, batch"),
        (":ttft=1s", "name is ''"),
    ],
)
def test_a_wrong_class_is_refused_in_one_line(words: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_class(words)
    assert message in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_classes_are_read_from_a_file_with_lines_for_mistakes(tmp_path: Path) -> None:
    text = (
        '[[class]]\nname = "a"\nshare = 0.3\nttft = "1s + in/4000"\n'
        '[[class]]\nname = "b"\nshare = "70%"\ntpot = 0.1\n'
    )
    first, second = read_classes(write(tmp_path / "c.toml", text))
    assert (first.name, first.share, first.slo.ttft_tokens_per_second) == ("a", 0.3, 4000.0)
    assert (second.share, second.slo.tpot) == (0.7, 0.1)
    for old, new, line, words in (
        ("tpot = 0.1", 'tpot = "x"', 8, "tpot is 'x'; expected a duration"),
        ("tpot", "tppt", 8, "unknown key 'tppt' in [[class]]"),
    ):
        with pytest.raises(FileMistake) as caught:
            read_classes(write(tmp_path / "c.toml", text.replace(old, new)))
        assert caught.value.line == line
        assert words in caught.value.message
    for wrong, words in (
        (text.replace('"b"', '"a"'), "the class 'a' is there twice"),
        (text.replace("0.3", "0").replace("70%", "0%"), "all shares are 0"),
        ("", "there is no [[class]]"),
    ):
        with pytest.raises(ConfigurationError, match=words.replace("[", r"\[")):
            read_classes(write(tmp_path / "c.toml", wrong))
