"""`sage simulate`: what it prints and writes, and that every wrong word is one line and status 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sage_cli.app import run
from sage_cli.simulation_plan import parse_companion, parse_moment, parse_rates
from sage_core import ConfigurationError
from sage_simulator import Moment
from simulator_files import MOONCAKE, servegen_folder, write

FLEET = """
[profiles.chat]
a0 = 0.01
m0 = 0.01
m1 = 1e-4
[profiles.vectors]
m0 = 0.001
m1 = 1e-6
[[group]]
name = "engine"
pool = "llm"
profile = "chat"
count = 2
[[group]]
name = "vectors"
pool = "embed"
kind = "batch"
profile = "vectors"
[[disturbance]]
at = "1s"
group = "engine"
instance = 0
kind = "slow"
factor = 2.0
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("CONFIG_HOME", "DATA_HOME", "STATE_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{variable}", str(tmp_path / variable))
    rows = "".join(f"{i},{100 + i},{10 + i % 7}\n" for i in range(60))
    write(tmp_path / "b.csv", "Timestamp,Request tokens,Response tokens\n" + rows)
    write(tmp_path / "fleet.toml", FLEET)
    return tmp_path


def command(files: Path, *more: str) -> list[str]:
    return ["simulate", "--trace", str(files / "b.csv"), "--fleet", str(files / "fleet.toml"), *more]


def test_a_table_with_one_row_per_rate_and_policy_is_printed(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(files, "--rates", "2:4:2", "--policy", "hybrid", "--policy", "random+hold")) == 0
    text = capsys.readouterr().out
    assert "trace    b: 60 runs in 60 s" in text
    assert "fleet    fleet: 2 x llm, 1 x embed" in text
    assert "TTFT 1 s + in/4000, TPOT 50 ms" in text
    assert "E2E 0.25 s" not in text  # nothing in this trace ends in an embedding
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("2 ", "4 "))]
    assert [row[:3] for row in rows] == [
        ["2", "hybrid", "100.00%"], ["2", "random+hold", "100.00%"],
        ["4", "hybrid", "100.00%"], ["4", "random+hold", "100.00%"],
    ]  # fmt: skip


def test_json_on_stdout_is_one_document_and_nothing_else(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--json",
        "-",
        "--seeds",
        "2",
        "--policy",
        "lmetric",
        "--slo",
        "a:share=50%,ttft=1s",
        "--slo",
        "b",
    )
    assert run(command(files, *arguments)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trace"]["runs"] == 60
    assert found["seeds"] == [0, 1]
    assert [(item["name"], item["slo"]["ttft"]) for item in found["classes"]] == [("a", 1.0), ("b", None)]
    [result] = found["results"]
    assert result["policy"] == "lmetric"
    assert len(result["reports"]) == 2
    report = result["reports"][0]
    assert set(report["classes"]) == {"a", "b"}
    assert report["overall"]["submitted"] == report["overall"]["good"]
    assert {"p50", "p90", "p95", "p99", "mean", "max", "count"} == set(report["overall"]["ttft"])


def test_plots_and_a_file_are_written(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plots = files / "out.json", files / "plots"
    assert (
        run(command(files, "--rates", "2:4:2", "--json", str(out), "--plots", str(plots), "--jobs", "2")) == 0
    )
    assert "wrote" in capsys.readouterr().err
    assert json.loads(out.read_text())["results"]
    names = {file.name for file in plots.iterdir()}
    assert names == {"attainment-vs-rate.png", "goodput-vs-rate.png", "cdf-2.png", "cdf-4.png"}


def test_classes_pools_tenants_and_decisions_have_tables_at_one_rate(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--rate", "5", "--slo", "x:share=0.5", "--slo", "y:share=0.5", "--tenant", "ann=2", "--tenant", "bob",
            "--time-decisions", "--mix", f"{files / 'b.csv'},rate=20")  # fmt: skip
    assert run(command(files, *more)) == 0
    text = capsys.readouterr().out
    for words in ("class ", "pool ", "embed", "tenant ", "ann", "bob", "Jain, service", "decisions"):
        assert words in text


def test_capacity_is_searched_between_the_rates(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(files, "--capacity", "--rates", "1:400:399", "--policy", "hybrid", "--json", "-")) == 0
    [found] = json.loads(capsys.readouterr().out)["capacities"]
    assert found["policy"] == "hybrid"
    assert 1 <= found["rate"] <= 400
    assert run(command(files, "--capacity", "--rates", "1:400:399", "--policy", "hybrid")) == 0
    assert "highest rate with attainment >= 99.0%" in capsys.readouterr().out


def test_statistics_are_generated_for_the_part_that_is_asked_for(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = servegen_folder(files / "statistics")
    arguments = ["simulate", "--trace", str(folder), "--fleet", str(files / "fleet.toml"), "--json", "-",
                 "--from", "10m", "--until", "15m", "--clients", "1", "--policy", "random"]  # fmt: skip
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert 290 < found["trace"]["seconds"] < 310
    assert found["trace"]["runs"] == pytest.approx(600, rel=0.25)
    assert list(found["results"][0]["reports"][0]["tenants"]) == ["client-3"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--policy", "best"], "'best' is unknown; expected one of hybrid"),
        (["--policy", "hybrid+nothing"], "'nothing'; expected one of"),
        (["--policy", "no.py:A"], "no.py does not exist"),
        (["--rates", "4"], "--rates is '4'; expected LOW:HIGH:STEP"),
        (["--rates", "4:2:1"], "expected 0 < LOW <= HIGH"),
        (["--rates", "1:1e9:1"], "at most 1000"),
        (["--rate", "0"], "--rate is 0.0"),
        (["--from", "half"], "found 'half'; expected a share"),
        (["--from", "200%"], "found '200%'"),
        (["--from", "2h"], "has no run from 7200 s"),
        (["--slo", "a:ttft=x"], "ttft is 'x'"),
        (["--slo", "a", "--slo", "a"], "the class 'a' is there twice"),
        (["--slo", "a:pool=vision"], "no class is for runs that end in pool 'llm'"),
        (["--slo", "a", "--classes", "c.toml"], "expected one of them"),
        (["--classes", "c.toml"], "c.toml: does not exist"),
        (["--tenant", "a=many"], "--tenant: found 'many'"),
        (["--mix", "b.csv,port=1"], "expected FILE,pool=NAME,rate=R"),
        (["--mix", "no.csv"], "no.csv: does not exist"),
        (["--format", "excel"], "--format is 'excel'; expected one of azure"),
        (["--resampling", "some"], "--resampling is 'some'; expected one of auto"),
        (["--capacity"], "expected --rates LOW:HIGH:STEP"),
        (["--fleet", "nowhere"], "fleet 'nowhere' is unknown; expected a TOML file or one of"),
        (["--fleet", "nowhere.toml"], "nowhere.toml: does not exist"),
        (["--seeds", "0"], "--seeds"),
        (["--first-seed", "99999999999999999999"], "--first-seed"),
        (["--max-tokens", "99999999999"], "--max-tokens"),
        (["--block-tokens", "99999999999"], "--block-tokens"),
        (["--rate", "1e-9"], "trace b at rate 1e-09 lasts 694,"),
        (["--json", ""], "--json is ''; expected a file"),
        (["--json", "."], "--json: . is a folder"),
        (
            ["--json", "/nowhere/at/all.json"],
            "/nowhere/at/all.json cannot be written: /nowhere/at is no folder",
        ),
        (["--plots", ""], "--plots is ''; expected a folder"),
        (["--plots", __file__], "is not a folder"),
    ],
)
def test_wrong_words_are_one_line_and_status_2(
    more: list[str], words: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(files, *more)) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, captured.err
    assert words in captured.err


def test_malformed_files_are_one_line_with_their_line_and_status_2(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(files / "m.jsonl", MOONCAKE.replace("600", '"x"'))
    assert run(["simulate", "--trace", str(files / "m.jsonl"), "--fleet", str(files / "fleet.toml")]) == 2
    captured = capsys.readouterr()
    accepted = "expected a whole number from 0 to 10000000"
    assert captured.err == f"sage: {files / 'm.jsonl'}, line 2: input_length is 'x'; {accepted}\n"
    assert captured.out == ""
    write(files / "fleet.toml", FLEET.replace("count = 2", "cuont = 2"))
    assert run(command(files)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(
        f"sage: {files / 'fleet.toml'}, line 13: unknown key 'cuont' in [[group]]; expected"
    )
    assert len(captured.err.splitlines()) == 1


POLICY = """
from sage_policy import Decision, Dispatch, InstanceUp, PlacementPolicy, SetTimer, Submitted, Timer
class Mine(PlacementPolicy):
    def score(self, request, instance): return 0
    {method}
"""
NOTHING = 'Decision("", 0.0, 0)'


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("def score(self, request, instance): raise ValueError('no\\nscore')", "ValueError: no score ("),
        ("def score(self, request, instance): raise SystemExit(3)", "SystemExit: 3 ("),
        (
            "def score(self, request, instance): pass",
            "ValueError: score is None for request 1 on instance 0;",
        ),
        ("def score(self, request, instance): return float('nan')", "ValueError: score is nan for request 1"),
        ("def score(self, request, instance): return float('-inf')", "ValueError: score is -inf"),
        ("def score(self, request, instance): return '3'", "ValueError: score is '3'"),
        ("def may_take(self, request, instance): pass", "ValueError: may_take is None"),
        ("def key(self, request): return float('nan')", "ValueError: key is nan"),
        ("def handle(self, event, now): return None", "TypeError: handle returned None; expected a list"),
        ("def handle(self, event, now): return [3]", "TypeError: handle returned 3; expected Dispatch"),
        ("def handle(self, event, now): return 1 / 0", "ZeroDivisionError: division by zero ("),
        (
            "def handle(self, event, now):\n        if not isinstance(event, Submitted): return []\n"
            f"        return [Dispatch(event.key, '99', {NOTHING})]",
            "ValueError: Dispatch names instance '99'; expected one of 0, 1, 2",
        ),
        (
            "def handle(self, event, now):\n        if not isinstance(event, Submitted): return []\n"
            f"        return [Dispatch('77', '0', {NOTHING})]",
            "ValueError: Dispatch names request '77', which was never submitted",
        ),
        (
            "def handle(self, event, now): return [SetTimer(now)] if isinstance(event, Submitted | Timer) else []",
            "RuntimeError: 10000 timers at 0 s",
        ),
        (
            "def handle(self, event, now): return [SetTimer(float('nan'))]",
            "ValueError: a command has the time nan",
        ),
    ],
)
def test_a_policy_that_fails_is_one_line_and_status_2(
    method: str, words: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(files / "mine.py", POLICY.format(method=method))
    assert run(command(files, "--policy", f"{path}:Mine", "--json", "-")) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith(f"sage: policy {path}:Mine failed: {words}"), captured.err
    assert f"({path}, line " in captured.err
    assert captured.out == ""


def test_infinity_is_the_last_choice(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = "def score(self, request, instance): return float('inf') if instance.instance.instance_id == '0' else 1"
    path = write(files / "mine.py", POLICY.format(method=method))
    assert run(command(files, "--policy", f"{path}:Mine", "--json", "-")) == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert [found["finished"] for found in result["reports"][0]["instances"]] == [0, 60, 0]


def test_a_wrong_time_in_a_trace_is_refused_at_once(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(files / "b.csv", "Timestamp,Request tokens,Response tokens\n0,10,10\n1,10,10\n200000000,10,10\n")
    assert run(command(files)) == 2
    message = capsys.readouterr().err
    assert "trace b lasts 3,472 days; expected at most 150: look for a wrong time in it" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "count = 2",
            "max_step_tokens = 1",
            "line 13: max_step_tokens is 1; expected at least max_sequences, 256",
        ),
        (
            "m1 = 1e-4",
            "max_step_tokens = 1",
            "line 12: profile 'chat': max_step_tokens is 1; expected at least",
        ),
        ("count = 2", "kv_tokens = 3", "line 13: kv_tokens is 3; expected at least two blocks of 16 tokens"),
        (
            "[[disturbance]]",
            "[telemetry]\ninterval = 1e-9\n[[disturbance]]",
            "line 20: interval is 1e-09; expected a",
        ),
    ],
)
def test_limits_of_a_fleet_that_no_engine_has_are_refused(
    old: str, new: str, words: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(files / "fleet.toml", FLEET.replace(old, new))
    assert run(command(files)) == 2
    message = capsys.readouterr().err
    assert f"fleet.toml, {words}" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("rows", ["0,10,10\n", "5,10,10\n5,10,10\n"])
def test_what_has_no_rate_shows_none(rows: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(files / "b.csv", f"Timestamp,Request tokens,Response tokens\n{rows}")
    assert run(command(files, "--policy", "hybrid")) == 0
    shown = capsys.readouterr().out
    assert "nan" not in shown
    [row] = [line.split() for line in shown.splitlines() if " hybrid " in line]
    assert row[:4] == ["-", "hybrid", "100.00%", "-"]
    assert run(command(files, "--policy", "hybrid", "--json", "-")) == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["goodput"] == {"mean": None, "min": None, "max": None}
    assert result["reports"][0]["rate"] is None
    assert result["reports"][0]["usd_per_1000_good"] is None


def test_a_policy_under_which_nothing_finishes_is_a_warning(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(files / "mine.py", POLICY.format(method="def handle(self, event, now): return []"))
    assert run(command(files, "--policy", f"{path}:Mine")) == 0
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1
    assert "no run finished: 0 were shed, 0 failed, 60 were never answered" in found[0]


def test_disturbances_can_be_left_out(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    means = []
    for more in ([], ["--quiet-day"]):
        assert run(command(files, "--json", "-", "--policy", "round-robin", *more)) == 0
        report = json.loads(capsys.readouterr().out)["results"][0]["reports"][0]
        means.append(report["overall"]["tpot"]["mean"])
    assert means[0] > means[1] * 1.2


def test_short_forms_are_read() -> None:
    assert parse_rates([3.0, 1.0], "1:2:0.5") == (1.0, 1.5, 2.0, 3.0)
    assert parse_rates([], None) == (None,)
    assert parse_moment("50%") == Moment(0.5, is_share=True)
    assert parse_moment("1.5h") == Moment(5400.0)
    companion = parse_companion("a.csv, pool=rerank, rate=7")
    assert (companion.file, companion.pool, companion.rate) == ("a.csv", "rerank", 7.0)
    with pytest.raises(ConfigurationError):
        parse_companion("a.csv,rate=-1")
