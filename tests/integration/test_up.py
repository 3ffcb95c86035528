"""`sage up` as a user meets it: real processes, a real nats-server, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

KINDS = ("gateway", "planner", "scheduler", "llm-worker", "embedding-worker", "operator-worker")
QUICK = ("--without", "embedding-worker", "--without", "operator-worker", "--without", "planner")
"""Three actors without torch: enough to start, stop and kill."""


class Sage:
    """The `sage` command with folders of its own."""

    def __init__(self, home: Path) -> None:
        folders = ("DATA_HOME", "STATE_HOME", "RUNTIME_DIR", "CONFIG_HOME")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SAGE_")}
        self.environment = clean | {f"XDG_{folder}": str(home / folder) for folder in folders}
        self.environment["HF_HUB_OFFLINE"] = "1"
        self.home = home
        for folder in folders:
            (home / folder).mkdir(mode=0o700)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.home / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "sage_cli", *arguments],
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sage_cli", *arguments],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def status(self, name: str, *, wait: float = 60.0) -> Any:
        found = self.run("status", "--name", name, "--json", "--wait-ready", str(wait))
        assert found.returncode == 0, found.stderr + self.output()
        return json.loads(found.stdout)

    def output(self) -> str:
        return (self.home / "output.txt").read_text()

    def runtime_file(self, name: str) -> Path:
        return self.home / "RUNTIME_DIR" / "sage" / name / "instance.json"


def ended(process: subprocess.Popen[bytes], timeout: float = 45.0) -> int:
    try:
        return process.wait(timeout)
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], timeout: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def family(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


def alive(processes: list[psutil.Process]) -> list[str]:
    return [process.name() for process in processes if process.is_running() and process.status() != "zombie"]


@pytest.fixture(scope="module")
def sage(tmp_path_factory: pytest.TempPathFactory) -> Sage:
    return Sage(tmp_path_factory.mktemp("sage"))


@pytest.fixture(scope="module")
def main(sage: Sage) -> Iterator[subprocess.Popen[bytes]]:
    """All six actors, with one document indexed."""
    process = sage.start("up", "--name", "main", "--engine", "emulated", "--port", "0")
    try:
        sage.status("main", wait=90)
        document = sage.home / "document.md"
        document.write_text(
            "# Otters\n\nSea otters hold hands while they sleep, so that they do not drift apart.\n"
        )
        indexed = sage.run("index", str(document), "--name", "main", "--json")
        assert indexed.returncode == 0, indexed.stderr
        assert json.loads(indexed.stdout)["num_indexed"] == 1
        yield process
        process.send_signal(signal.SIGINT)
        assert ended(process) == 0, sage.output()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def quick(sage: Sage, request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A small instance of its own, named after the test."""
    name = request.node.originalname.removeprefix("test_").replace("_", "-")[:32].strip("-")
    process = sage.start("up", "--name", name, "--engine", "emulated", "--port", "0", *QUICK)
    try:
        sage.status(name)
        yield name, process
    finally:
        process.kill()
        process.wait()


def asked(url: str) -> httpx.Response | None:
    body = {
        "model": "pipeline/rag-docs",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "Why do otters hold hands?"}],
    }
    try:
        return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("kind", [*KINDS, "nats-server"])
def test_a_killed_process_is_restarted_and_the_next_request_succeeds(
    sage: Sage, main: subprocess.Popen[bytes], kind: str
) -> None:
    url = sage.status("main")["gateway_url"]
    (victim,) = [process for process in family(main.pid) if is_kind(process, kind)]
    victim.kill()
    # Nobody ever waits for nothing: what comes first is an answer, a clear error, or a closed door.
    first = asked(url)
    assert first is None or first.status_code == 200 or "error" in first.json()
    assert until(lambda: any(is_kind(process, kind) for process in family(main.pid)))
    sage.status("main")
    answer = asked(url)
    assert answer is not None
    assert answer.status_code == 200, answer.text
    assert main.poll() is None


def test_a_request_survives_every_restart_of_the_bus(sage: Sage, main: subprocess.Popen[bytes]) -> None:
    url = sage.status("main")["gateway_url"]
    for _ in range(3):
        (victim,) = [process for process in family(main.pid) if is_kind(process, "nats-server")]
        victim.kill()
        started = time.monotonic()
        answer = asked(url)
        assert answer is not None
        assert answer.status_code == 200, answer.text
        assert time.monotonic() - started < 20.0


def is_kind(process: psutil.Process, kind: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    if kind == "nats-server":
        return bool(command) and command[0].endswith("nats-server")
    return f"sage_{kind.replace('-', '_')}" in command


def test_status_names_every_actor_and_its_pools(sage: Sage, main: subprocess.Popen[bytes]) -> None:
    found = sage.status("main")
    assert found["is_ready"]
    assert {actor["kind"] for actor in found["actors"]} == set(KINDS)
    pools = {model["name"] for actor in found["actors"] for model in actor["models"]}
    assert {"all-MiniLM-L6-v2", "operator/retrieve", "pipeline/rag-docs"} <= pools
    table = sage.run("status", "--name", "main")
    assert all(kind in table.stdout for kind in KINDS)


def test_a_second_scheduler_stands_by_and_both_are_shown(sage: Sage) -> None:
    process = sage.start(
        "up", "--name", "two", "--engine", "emulated", "--port", "0", "--schedulers", "2", *QUICK
    )
    try:
        found = sage.status("two")
        schedulers = {
            actor["id"]: actor["leads"] for actor in found["actors"] if actor["kind"] == "scheduler"
        }
        assert schedulers.keys() == {"scheduler", "scheduler-2"}
        assert sorted(map(bool, schedulers.values())) == [False, True]
        table = sage.run("status", "--name", "two").stdout
        assert "stands by" in table
        assert "leads " in table
        gateway = found["gateway_url"]
        model = next(pool for leads in schedulers.values() for pool in leads)
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        reply = httpx.post(f"{gateway}/v1/chat/completions", json=body, timeout=30.0)
        assert reply.status_code == 200, reply.text
        for _ in range(5):
            explained = sage.run("explain", reply.headers["x-request-id"], "--name", "two")
            assert "dispatched" in explained.stdout, explained.stderr
    finally:
        process.kill()
        process.wait()


def test_indexing_again_leaves_unchanged_documents_alone(sage: Sage, main: subprocess.Popen[bytes]) -> None:
    found = sage.run("index", str(sage.home / "document.md"), "--name", "main", "--json")
    summary = json.loads(found.stdout)
    assert (summary["num_indexed"], summary["num_unchanged"]) == (0, 1)


def test_an_answer_comes_with_its_sources_its_trace_and_its_receipt(
    sage: Sage, main: subprocess.Popen[bytes]
) -> None:
    asked = sage.run("ask", "Why do otters hold hands?", "--name", "main", "--trace")
    assert asked.returncode == 0, asked.stderr
    assert "document.md" in asked.stdout
    for stage in ("POST /v1/chat/completions", "node passages", "queue"):
        assert stage in asked.stdout
    url = sage.status("main")["gateway_url"]
    body = {"model": "all-MiniLM-L6-v2", "input": "otters"}
    reply = httpx.post(f"{url}/v1/embeddings", json=body, timeout=30, trust_env=False)
    request_id = reply.headers["x-sage-request-id"]
    traced = sage.run("trace", request_id, "--name", "main", "--json")
    assert json.loads(traced.stdout)["trace_id"] == reply.headers["x-sage-trace-id"]
    explained = sage.run("explain", request_id, "--name", "main", "--json")
    assert json.loads(explained.stdout)[0]["chosen"] == "embedding-worker"


def test_the_logs_of_every_process_are_kept(sage: Sage, main: subprocess.Popen[bytes]) -> None:
    everything = sage.run("logs", "--name", "main", "-n", "1").stdout
    assert all(kind in everything for kind in (*KINDS, "nats-server"))
    assert "actor_started" in sage.run("logs", "gateway", "--name", "main").stdout
    assert sage.run("logs", "nobody", "--name", "main").returncode == 2


def test_the_same_name_twice_is_refused_with_a_hint(sage: Sage, main: subprocess.Popen[bytes]) -> None:
    second = sage.run("up", "--name", "main")
    assert second.returncode == 2
    assert len(second.stderr.splitlines()) == 1
    assert "--name" in second.stderr
    assert sage.status("main")["is_ready"]


def test_the_bus_is_closed_to_whoever_has_no_token(sage: Sage, main: subprocess.Popen[bytes]) -> None:
    file = sage.runtime_file("main")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    url = json.loads(file.read_text())["bus_url"]
    token, _, address = url.removeprefix("nats://").partition("@")
    assert len(token) >= 24
    host, port = address.split(":")
    assert host == "127.0.0.1"
    with socket.create_connection((host, int(port)), 5) as stranger:
        stranger.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        stranger.settimeout(5)
        received = b""
        while chunk := stranger.recv(4096):
            received += chunk
    assert b"Authorization Violation" in received
    arguments = [" ".join(child.cmdline()) for child in family(main.pid)]
    assert not any(token in line for line in arguments)


def test_two_instances_do_not_meet(
    sage: Sage, main: subprocess.Popen[bytes], quick: tuple[str, subprocess.Popen[bytes]]
) -> None:
    name, process = quick
    one, two = sage.status("main"), sage.status(name)
    assert one["gateway_url"] != two["gateway_url"]
    assert not {actor["pid"] for actor in one["actors"]} & {actor["pid"] for actor in two["actors"]}
    children = family(process.pid)
    assert sage.run("stop", "--name", name).returncode == 0
    assert ended(process) == 0
    assert not alive(children)
    assert sage.run("status", "--name", name).returncode == 3
    assert sage.status("main")["is_ready"]


def test_kill_9_of_sage_up_leaves_nothing_running(
    sage: Sage, quick: tuple[str, subprocess.Popen[bytes]]
) -> None:
    name, process = quick
    children = family(process.pid)
    assert len(children) == 4
    process.kill()
    process.wait()
    assert until(lambda: not alive(children), 5.0), alive(children)
    # What it left behind is known to be stale.
    assert sage.runtime_file(name).exists()
    assert sage.run("status", "--name", name).returncode == 3


def test_ctrl_c_drains_and_leaves_nothing(sage: Sage, quick: tuple[str, subprocess.Popen[bytes]]) -> None:
    name, process = quick
    children = family(process.pid)
    process.send_signal(signal.SIGINT)
    assert ended(process) == 0
    assert not alive(children)
    assert not sage.runtime_file(name).exists()
    assert "drain_started" in sage.run("logs", "gateway", "--name", name).stdout


def test_a_second_ctrl_c_ends_it_at_once(sage: Sage, quick: tuple[str, subprocess.Popen[bytes]]) -> None:
    _, process = quick
    children = family(process.pid)
    for child in children:
        if is_kind(child, "gateway"):
            child.suspend()  # a drain that would never end
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    ended(process, 10.0)
    assert not alive(children)


def test_a_taken_default_port_is_replaced_and_a_chosen_one_is_refused(sage: Sage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        for arguments, environment in ((("--port", port), {}), ((), {"SAGE_GATEWAY__PORT": port})):
            refused = sage.run("up", "--name", "taken", *arguments, *QUICK, **environment)
            assert refused.returncode == 2
            assert f"port {port} is in use" in refused.stderr


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SAGE_GATEWAY__PROT": "1"}, "gateway.prot"),
        ({"SAGE_NONSENSE": "1"}, "SAGE_NONSENSE"),
        ({"SAGE_LLM_WORKER__ENGINE": "magic"}, "llm_worker.engine"),
    ],
)
def test_bad_settings_start_nothing_and_are_named(
    sage: Sage, environment: dict[str, str], named: str
) -> None:
    found = sage.run("up", "--name", "bad", **environment)
    assert found.returncode == 2
    assert named in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert found.stdout == ""


def test_an_actor_that_refuses_its_settings_stops_everything_with_its_own_line(sage: Sage) -> None:
    found = sage.run(
        "up",
        "--name",
        "refused",
        "--engine",
        "transformers",
        "--model",
        "/no/such/model",
        "--port",
        "0",
        *QUICK,
    )
    assert found.returncode == 2
    assert "/no/such/model" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert sage.run("status", "--name", "refused").returncode == 3


def test_the_demo_answers_with_sources_and_stages_and_leaves_nothing(sage: Sage) -> None:
    found = sage.run("demo", "--exit", "--name", "demo", "--engine", "extractive", "--port", "0")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "failures.md" in found.stdout
    assert "Where the time went" in found.stdout
    assert sage.run("status", "--name", "demo").returncode == 3
