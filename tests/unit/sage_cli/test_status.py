"""`sage status`: what is shown of hosts, actors, versions and health, and where the command looks for them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from sage_bus.testing import free_port
from sage_cli.app import run
from sage_cli.exits import CommandFailed
from sage_cli.runtime import Instance, find_gateway_site, find_site, gateway_of
from sage_cli.status import Observed, report, status_table
from sage_wire.messages import Announcement, ServedModel

CLUSTER = Instance(
    name="cluster-x", pid=0, bus_url="nats-1:4222", gateway_url="", started=0.0, is_cluster=True,
    kinds=["gateway", "planner", "scheduler", "llm-worker", "embedding-worker", "operator-worker"],
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CONFIG_HOME", "DATA_HOME", "STATE_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{variable}", str(tmp_path / variable))
    for variable in ("SAGE_CONFIG", "SAGE_BUS__URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)


def actor(
    actor_id: str, kind: str, host: str, *models: str, version: str = "0.2.0", **more: object
) -> Announcement:
    fields = {"state": "ready", "started_s_ago": 7500.0, "max_in_flight": 64} | more
    return Announcement(
        actor_id=actor_id, kind=kind, epoch="e", sequence=1, version=version, host=host, pid=1,
        models=[ServedModel(name=name, task="generate") for name in models], **fields,
    )  # type: ignore[arg-type]  # fmt: skip


def three_hosts(**of_the_llm_worker: object) -> Observed:
    pools = ["Qwen/Qwen3-0.6B", "all-MiniLM-L6-v2", "operator/index", "operator/retrieve", "operator/split",
             "pipeline/index-docs", "pipeline/rag-docs"]  # fmt: skip
    found = [
        actor("gateway-1", "gateway", "edge-1", max_in_flight=2048, num_in_flight=12),
        actor("planner-1", "planner", "edge-1", "pipeline/index-docs", "pipeline/rag-docs"),
        actor("scheduler-1", "scheduler", "edge-1", leads=pools, max_in_flight=0),
        actor("scheduler-2", "scheduler", "cpu-1", max_in_flight=0),
        actor("embedding-worker-1", "embedding-worker", "cpu-1", "all-MiniLM-L6-v2"),
        actor("operator-worker-1", "operator-worker", "cpu-1", *pools[2:5]),
        actor("llm-worker-1", "llm-worker", "gpu-1", "Qwen/Qwen3-0.6B", **of_the_llm_worker),
    ]
    return Observed({each.actor_id: each for each in found})


def shown(found: Observed, width: int = 120, instance: Instance = CLUSTER) -> list[str]:
    console = Console(width=width, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(status_table(instance, found))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_actors_stand_under_their_host_and_every_word_fits_the_terminal(width: int) -> None:
    lines = shown(three_hosts(), width)
    assert lines[0] == "SAGE cluster at nats-1:4222  version 0.2.0 on 3 hosts"
    assert lines[-1] == "ready"
    starts = [
        line.split()[0]
        for line in lines[2:-1]
        if line.lstrip() == line or (line.startswith("  ") and line[2] != " ")
    ]
    assert starts == [
        "cpu-1", "embedding-worker-1", "operator-worker-1", "scheduler-2",
        "edge-1", "gateway-1", "planner-1", "scheduler-1",
        "gpu-1", "llm-worker-1",
    ]  # fmt: skip
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for word in (
        "all-MiniLM-L6-v2",
        "pipeline/rag-docs",
        "Qwen/Qwen3-0.6B",
        "12/2048",
        "2h",
        "stands",
        "leads",
    ):
        assert word in words, word
    assert not any("…" in word for word in words)


def test_one_host_is_named_once_in_the_head() -> None:
    found = Observed({"gateway": actor("gateway", "gateway", "laptop")})
    lines = shown(found, instance=msgspec.structs.replace(CLUSTER, kinds=["gateway"]))
    assert lines[0] == "SAGE cluster at nats-1:4222  version 0.2.0 on laptop"
    assert lines[2].split()[0] == "gateway"
    assert sum("laptop" in line for line in lines) == 1


def test_mixed_versions_are_flagged_and_who_runs_which_is_told() -> None:
    lines = shown(three_hosts(version="0.1.0"))
    assert lines[0] == "SAGE cluster at nats-1:4222 on 3 hosts"
    assert "mixed versions: 0.1.0: llm-worker-1; 0.2.0: 6 actors" in lines
    assert [line for line in lines if line.startswith(("cpu-1", "edge-1", "gpu-1"))] == [
        "cpu-1  0.2.0", "edge-1  0.2.0", "gpu-1  0.1.0",
    ]  # fmt: skip
    assert report(CLUSTER, three_hosts(version="0.1.0")).versions["0.1.0"] == ["llm-worker-1"]


def test_who_drains_is_shown_and_counts_as_not_ready() -> None:
    found = three_hosts(state="draining", num_in_flight=3)
    lines = shown(found)
    assert "draining: llm-worker-1" in lines
    assert "not ready: llm-worker" in lines
    assert any("draining" in line and "3/64" in line for line in lines)
    told = report(CLUSTER, found)
    assert (told.is_ready, told.missing) == (False, ["llm-worker"])
    assert [(host.name, host.is_ready) for host in told.hosts] == [
        ("cpu-1", True),
        ("edge-1", True),
        ("gpu-1", False),
    ]


def test_trouble_of_an_actor_stands_beside_what_it_serves() -> None:
    assert any(
        "Qwen/Qwen3-0.6B; the engine restarts" in line
        for line in shown(three_hosts(health="the engine restarts"))
    )


def test_a_pool_without_a_leader_is_not_ready() -> None:
    found = three_hosts()
    headless = Observed({key: each for key, each in found.actors.items() if key != "scheduler-1"})
    lines = shown(headless)
    assert any(line.startswith("no scheduler leads Qwen/Qwen3-0.6B, all-MiniLM-L6-v2") for line in lines)
    assert "ready" not in lines
    told = report(CLUSTER, headless)
    assert not told.is_ready
    assert told.unled[0] == "Qwen/Qwen3-0.6B"


def test_json_tells_hosts_versions_and_every_actor() -> None:
    told = json.loads(msgspec.json.encode(report(CLUSTER, three_hosts())))
    assert (told["is_ready"], told["is_cluster"], told["bus"], told["age_s"]) == (
        True,
        True,
        "nats-1:4222",
        7500.0,
    )
    assert told["versions"] == {
        "0.2.0": sorted(three_hosts().actors, key=lambda key: (key.rpartition("-")[0], key))
    }
    assert told["hosts"][2] == {
        "name": "gpu-1",
        "versions": ["0.2.0"],
        "actors": ["llm-worker-1"],
        "is_ready": True,
    }
    assert {"id", "kind", "state", "health", "models", "host", "version", "epoch", "age_s"} <= set(
        told["actors"][0]
    )


def test_the_settings_name_a_cluster_and_no_secret_of_the_url_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGE_BUS__URL", "nats://token@nats-1:4222,tls://user:pass@nats-2:4222")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://edge-1:8080/v1/")
    found = find_site("default")
    assert found.is_cluster
    assert found.bus_url == "nats-1:4222,nats-2:4222"
    assert gateway_of(found) == "http://edge-1:8080"
    monkeypatch.setenv("SAGE_BUS__URL", "nats://nats-3:4222")
    assert find_site("default").name != found.name


def test_a_gateway_elsewhere_is_enough_to_talk_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://edge-1:8080/v1")
    assert gateway_of(find_gateway_site("default")) == "http://edge-1:8080"
    with pytest.raises(CommandFailed, match="no instance 'default' is running"):
        find_site("default")
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(CommandFailed, match="no instance 'default' is running"):
        find_gateway_site("default")


def test_a_file_names_a_cluster_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sage.toml"
    file.write_text("[planner]\nmax_runs = 1\n[bus]\nurl = 'tls://nats-1:4222'\n")
    monkeypatch.setenv("SAGE_CONFIG", str(file))
    found = find_site("default")
    assert (found.is_cluster, found.bus_url) == (True, "nats-1:4222")
    with pytest.raises(CommandFailed, match="set OPENAI_BASE_URL"):
        gateway_of(found)


def test_an_instance_named_on_the_command_line_is_one_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGE_BUS__URL", "nats://nats-1:4222")
    with pytest.raises(CommandFailed, match="no instance 'mine' is running"):
        find_site("mine")


def test_a_cluster_that_does_not_answer_is_one_line_and_status_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sage_cli.connection._CONNECT_TIMEOUT", 0.2)
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("SAGE_BUS__URL", f"nats://{address}")
    assert run(["status"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"sage: the bus of cluster {address} does not answer: ")
    assert len(captured.err.splitlines()) == 1


def test_a_kind_that_does_not_exist_cannot_be_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGE_BUS__URL", "nats://nats-1:4222")
    assert run(["status", "--expect", "nobody"]) == 2
    assert "--expect is 'nobody'; expected one of gateway, planner" in capsys.readouterr().err
