"""Exit codes, one-line errors, help, settings, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sage_cli import child
from sage_cli.app import run
from sage_cli.document_parts import Part
from sage_cli.documents import FoundDocument
from sage_cli.indexing import batches
from sage_cli.members import BUS, KINDS, Choices, actor_environment, kinds_without, members
from sage_cli.receipts import receipt_text
from sage_cli.screens import PlainScreen, Snapshot
from sage_cli.settings_check import gateway_address, load_all, shown
from sage_cli.status import Observed, age_text
from sage_cli.supervision import MemberView, State
from sage_core import ConfigurationError
from sage_policy import EngineProfile, Event, Instance, InstanceUp, Submitted, make_policy
from sage_policy.event_log import LogHeader, encode_header, encode_record
from sage_wire.messages import (
    Announcement,
    DecisionFacts,
    Document,
    Receipt,
    ReceiptCandidate,
    ReceiptTimes,
    ServedModel,
)

COMMANDS = (
    "up", "status", "chat", "index", "ask", "demo", "trace", "explain", "plan", "replay", "simulate", "logs",
    "stop", "version",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CONFIG_HOME", "DATA_HOME", "STATE_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{variable}", str(tmp_path / variable))
    monkeypatch.delenv("SAGE_CONFIG", raising=False)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), ("config", "show"), ("config", "check")]
)
def test_every_command_explains_itself_with_an_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: {' '.join(('sage', *command))}" in text
    assert ("Example:" if command else "First steps:") in text


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["up", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["ask"], "question"),
        (["status", "--name", "Not Valid"], "Not Valid"),
        (["up", "--without", "nobody"], "nobody"),
        (["up", "--config", "/no/such/file"], "/no/such/file"),
        (["config", "check", "/no/such/file"], "/no/such/file"),
        (["plan", "/no/such/file"], "/no/such/file"),
        (["index", "/no/such/folder"], "/no/such/folder"),
        (["demo", "/no/such/folder"], "/no/such/folder"),
        (["index", "/", "--max-bytes", "2 apples"], "apples"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert found in one_line(capsys)


@pytest.mark.parametrize(
    "arguments", [["status"], ["stop"], ["chat", "hi"], ["ask", "hi"], ["trace", "0" * 32], ["logs"]]
)
def test_nothing_running_is_one_line_and_status_3(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 3
    assert "default" in one_line(capsys)


def test_a_pipeline_mistake_names_file_line_and_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nnodes:\n  - type: chatt\n")
    assert run(["plan", str(file)]) == 2
    assert f"{file}:3:" in one_line(capsys)


def test_a_plan_is_shown_as_text_mermaid_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nnodes:\n  - type: chat\n  - type: llm\n    model: some-model\n")
    for option, expected in ((), "pipeline/mine"), (("--mermaid",), "flowchart"):
        assert run(["plan", str(file), *option]) == 0
        assert expected in capsys.readouterr().out
    assert run(["plan", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pipeline"] == "mine"


def test_settings_mistakes_are_named_once_with_their_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sage.toml"
    file.write_text("[telemetry]\nlog_level = 'loud'\n")
    assert run(["config", "check", str(file)]) == 2
    assert "telemetry.log_level = 'loud'" in (line := one_line(capsys))
    assert str(file) in line
    file.write_text("[gateway]\nport = 9000\n")
    assert run(["config", "check", str(file)]) == 0
    capsys.readouterr()
    monkeypatch.setenv("SAGE_GATEWAY__PORT", "9001")
    assert run(["config", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gateway"]["port"] == 9001


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[planner]\npipelines_dir = "/nope"\n', "'/nope'"),
        ('[llm_worker.emulated]\nprofile = "zzz"\n', "'zzz'"),
        ('instance = "a b"\n', "'a b'"),
        ('[scheduler]\npolicy = "/nope.py:Mine"\n', "/nope.py does not exist"),
        ("[scheduler.weights]\nnope = 1\n", "nope is unknown"),
        ('[scheduler.classes.""]\ntier = 1\n', "the name of a class is empty"),
    ],
)
def test_what_a_service_would_refuse_is_refused_by_the_check(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sage.toml"
    file.write_text(text)
    assert run(["config", "check", str(file)]) == 2
    assert expected in one_line(capsys)


@pytest.mark.parametrize("arguments", [["status"], ["stop"], ["plan", "x.yaml"], ["config", "show"]])
def test_an_unknown_variable_is_refused_by_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGE_NOPE", "1")
    assert run(arguments) == 2
    assert "unknown environment variable SAGE_NOPE" in one_line(capsys)
    assert run([*arguments, "--help"]) == 0


def test_a_choice_of_the_command_line_is_refused_in_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--engine", "zzz"]) == 2
    assert one_line(capsys).rstrip() == (
        "sage: --engine is 'zzz'; expected one of auto, vllm, transformers, emulated, extractive"
    )


def test_a_folder_is_no_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(tmp_path)]) == 2
    assert one_line(capsys).rstrip() == f"sage: {tmp_path} is a folder; expected a pipeline file (YAML)"


def test_half_a_character_in_a_pipeline_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('name: mine\ndescription: "\\ud800"\nnodes:\n  - type: chat\n  - type: llm\n')
    assert run(["plan", str(file)]) == 2
    assert f"{file}:2:14: " in one_line(capsys)


def test_version_names_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    assert {"python", "sage-serve", "nats-py"} <= json.loads(capsys.readouterr().out).keys()


def test_choices_reach_the_actors_over_the_callers_environment() -> None:
    choices = Choices(model="m", engine="emulated", embedding_model="e", config=Path("sage.toml"))
    found = actor_environment(
        {"SAGE_GATEWAY__PORT": "1", "KEPT": "yes"},
        name="one",
        bus_url="nats://t@h:1",
        gateway_port=2,
        choices=choices,
    )
    assert found["SAGE_INSTANCE"] == "one"
    assert found["SAGE_BUS__URL"] == "nats://t@h:1"
    assert found["SAGE_GATEWAY__PORT"] == "2"
    assert (found["SAGE_LLM_WORKER__MODEL"], found["SAGE_LLM_WORKER__ENGINE"]) == ("m", "emulated")
    assert json.loads(found["SAGE_EMBEDDING_WORKER__MODELS"]) == ["e"]
    assert Path(found["SAGE_CONFIG"]).is_absolute()
    assert found["KEPT"] == "yes"
    assert load_all(found | {"SAGE_CONFIG": ""}).keys() == set(KINDS)


def test_a_port_from_anywhere_but_the_default_counts_as_chosen() -> None:
    assert gateway_address(load_all({}), is_chosen=False) == ("127.0.0.1", 8080, False)
    assert gateway_address(load_all({"SAGE_GATEWAY__PORT": "9000"}), is_chosen=False)[1:] == (9000, True)
    assert gateway_address({}, is_chosen=False)[1:] == (8080, False)


def test_every_table_of_the_settings_is_shown() -> None:
    tables = shown(load_all({}))
    assert {"actor", "bus", "gateway", "llm_worker", "planner", "telemetry"} <= tables.keys()
    json.dumps(tables)


def test_the_bus_starts_first_and_stops_last() -> None:
    every = members(KINDS)
    bus = next(member for member in every if member.name == BUS)
    assert all(bus.start_stage < other.start_stage for other in every if other is not bus)
    assert all(bus.stop_stage > other.stop_stage for other in every if other is not bus)
    assert min(every, key=lambda member: member.stop_stage).name == "gateway"


def test_kinds_may_be_left_out_by_name_only() -> None:
    assert kinds_without(("gateway", "planner")) == KINDS[2:]
    with pytest.raises(ConfigurationError, match="expected one of gateway"):
        kinds_without(("router",))


def found(number: int, chars: int) -> Part:
    document = Document(source=str(number), text="x" * chars)
    return Part(document, FoundDocument(document, str(number)))


def test_batches_are_bounded_in_number_and_size_and_lose_nothing() -> None:
    documents = [
        found(number, size) for number, size in enumerate([10] * 40 + [150_000, 60_000, 500_000, 10])
    ]
    made = list(batches(iter(documents)))
    assert [each for batch in made for each in batch] == documents
    assert all(len(batch) <= 16 for batch in made)
    assert [len(batch) for batch in made[-4:]] == [9, 1, 1, 1]
    assert list(batches(iter([]))) == []


def announced(state: str = "ready") -> Announcement:
    models = [ServedModel(name="m", task="embed"), ServedModel(name="m", task="rerank")]
    return Announcement(
        actor_id="gateway", kind="gateway", epoch="e", sequence=0, state=state, version="1", host="h", pid=1,
        models=models,
    )  # fmt: skip


def test_the_plain_screen_prints_changes_only(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PlainScreen(Console(width=200))

    def show(state: State, detail: str = "", *, is_ready: bool = False) -> None:
        view = MemberView("gateway", state, 0, detail)
        screen.show(Snapshot("one", "http://h:1", "/logs", [view], {"gateway": announced()}, is_ready))

    show(State.WAITING)
    show(State.STARTING)
    show(State.STARTING)
    show(State.READY, is_ready=True)
    show(State.READY, is_ready=True)
    show(State.STARTING, "killed by signal 9")
    show(State.READY, is_ready=True)
    lines = [line.split("] ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "gateway starting",
        "gateway ready (m)",
        "ready: http://h:1/v1 (logs: /logs)",
        "gateway starting (killed by signal 9)",
        "gateway ready (m)",
        "ready again",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (185, "3m 5s"), (7800, "2h 10m"), (356400, "4d 3h")]
)
def test_ages_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


def test_a_receipt_shows_what_was_predicted_beside_what_came(capsys: pytest.CaptureFixture[str]) -> None:
    receipt = Receipt(
        request_id="r1", attempt=0, pool="qwen", policy="hybrid", decision="dispatched", reason="lowest score",
        queue_ms=12.5, num_queued=3, chosen="w1", predicted_ms=900.0, actual_ms=1000.0,
        predicted=ReceiptTimes(ttft_ms=120.0, tpot_ms=20.0),
        actual=ReceiptTimes(ttft_ms=131.0, tpot_ms=21.5, num_tokens=41, num_cached=256),
        facts=DecisionFacts(scheduler_id="s1", fence=7, batch=3, batch_size=2),
    )  # fmt: skip
    Console(width=120).print(receipt_text(receipt))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "chosen: w1, in batch 3 of 2" in lines
    assert "decided by s1, fence 7" in lines
    assert "first token 120.0 ms 131.0 ms" in lines
    assert "per token after it 20.0 ms 21.5 ms" in lines
    assert "whole request 900.0 ms 1000.0 ms" in lines
    assert "41 tokens, 256 prompt tokens from the cache" in lines


def test_a_refusal_says_with_what_and_until_when(capsys: pytest.CaptureFixture[str]) -> None:
    receipt = Receipt(
        request_id="r1", attempt=0, pool="qwen", policy="hybrid", decision="shed", reason="it would be late",
        queue_ms=0.0, num_queued=3, facts=DecisionFacts(scheduler_id="s1", code="overloaded", retry_after=2.5),
    )  # fmt: skip
    Console(width=120).print(receipt_text(receipt))
    assert "refused with overloaded, retry after 2.5 s" in capsys.readouterr().out


def recorded(path: Path, decided_by: str = "hybrid") -> Path:
    """Write a log that names the hybrid policy, told what a small cluster tells."""
    header = LogHeader(policy="hybrid", max_queued=8, seed=1, version="0")
    policy = make_policy(decided_by, max_queued=8, seed=1)
    told: list[Event] = [
        InstanceUp(Instance("w1", "m", 2, profile=EngineProfile(a0=0.02, m0=0.02, m1=1e-4))),
        Submitted("r/0", "m", 60.0, num_prompt_tokens=900),
    ]
    records = [encode_record(event, 1.0, policy.handle(event, 1.0)) for event in told]
    path.write_bytes(encode_header(header) + b"".join(records))
    return path


def test_a_replay_that_decides_the_same_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["replay", str(recorded(tmp_path / "s1.log"))]) == 0
    assert "2 events of policy hybrid: every command is the same, byte for byte" in capsys.readouterr().out


def test_a_replay_that_decides_otherwise_shows_the_first_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", str(recorded(tmp_path / "s1.log", decided_by="least-outstanding"))]) == 1
    captured = capsys.readouterr()
    assert "record 1 differs, at 1.000000 s" in captured.out
    assert "Submitted(key='r/0'" in captured.out
    assert captured.out.count("Dispatch(") == 2
    assert "decides otherwise from record 1 on" in captured.err


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"text", "no event log"), (b"", "no event log")]
)
def test_what_cannot_be_replayed_is_one_line_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
) -> None:
    path = tmp_path / "s1.log"
    if content is not None:
        path.write_bytes(content)
    assert run(["replay", str(path)]) == 2
    error = one_line(capsys)
    assert str(path) in error
    assert reason in error


def test_the_variable_that_holds_a_table_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, expected in (
        ('{"gold": {"tier": 9}}', "gold.tier = 9"),
        ('{"gold": {"nope": 1}}', "gold.nope"),
    ):
        monkeypatch.setenv("SAGE_SCHEDULER__CLASSES", value)
        assert run(["config", "check"]) == 2
        assert (line := one_line(capsys)).startswith("sage: SAGE_SCHEDULER__CLASSES: ")
        assert expected in line


def test_a_log_cannot_name_the_python_code_that_a_replay_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "mine.py"
    code.write_text(
        "from pathlib import Path\n"
        "from sage_policy.placement_policy import LeastOutstanding\n"
        f"Path({str(tmp_path / 'was-run')!r}).touch()\n"
        "class Mine(LeastOutstanding): pass\n"
    )
    log, mine = tmp_path / "s1.log", f"{code}:Mine"
    log.write_bytes(encode_header(LogHeader(policy=mine, max_queued=8, seed=1, version="0")))
    assert run(["replay", str(log)]) == 2
    assert "name the file with --policy" in one_line(capsys)
    assert not (tmp_path / "was-run").exists()
    assert run(["replay", str(log), "--policy", mine]) == 0
    assert f"runs the policy {mine}" in capsys.readouterr().out
    assert run(["replay", str(recorded(tmp_path / "s2.log")), "--policy", mine]) == 2


def test_a_further_scheduler_is_no_choice_without_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--schedulers", "2", "--without", "scheduler"]) == 2
    assert "exclude each other" in one_line(capsys)


def test_an_instance_is_waited_for_until_every_pool_has_a_leader() -> None:
    def announced(actor_id: str, kind: str, **more: Any) -> Announcement:
        return Announcement(
            actor_id=actor_id, kind=kind, epoch="e", sequence=0, state="ready", version="1", host="h", pid=1,
            **more,
        )  # fmt: skip

    worker = announced("w1", "llm-worker", models=[ServedModel(name=name, task="generate") for name in "ba"])
    assert Observed({"w1": worker}).unled() == [], "there is nobody to lead"
    idle = announced("s1", "scheduler")
    assert Observed({"w1": worker, "s1": idle}).unled() == ["a", "b"]
    leading = [announced("s1", "scheduler", leads=["a"]), announced("s2", "scheduler", leads=["b"])]
    assert Observed({"w1": worker} | {actor.actor_id: actor for actor in leading}).unled() == []


def test_a_receipt_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    receipt = Receipt(
        request_id="r", attempt=0, pool="p", policy="least-outstanding", decision="dispatched", reason="fewest",
        queue_ms=1.5, num_queued=2, chosen="w1", actual_ms=12.0,
        candidates=[
            ReceiptCandidate(instance_id="w2", score=0.0, reason="full"),
            ReceiptCandidate(instance_id="w1", score=3.0),
        ],
    )  # fmt: skip
    Console(width=120).print(receipt_text(receipt))
    text = capsys.readouterr().out
    assert "dispatched: fewest" in text
    assert "waited 1.5 ms" in text
    assert text.index("w1 ") < text.index("w2 ")


def test_a_child_is_started_only_under_the_parent_it_names() -> None:
    done = subprocess.run(
        child.command(1, ["/bin/echo", "started"]), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_a_command_that_cannot_be_started_says_so() -> None:
    command = child.command(os.getpid(), ["/no/such/program"])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr
    assert sys.executable in command
