"""deploy/compose/run_actor.py: process 1 of an actor's container, run as a program around small actors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RUN_ACTOR = Path(__file__).parents[3] / "deploy" / "compose" / "run_actor.py"
TELL = """
import os, signal, socket, sys, time
def tell(state):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), os.environ["NOTIFY_SOCKET"])
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(body: str, watchdog: float = 30.0) -> subprocess.Popen[str]:
        (tmp_path / "sage_example_actor.py").write_text(TELL + body)
        environment = os.environ | {
            "PYTHONPATH": str(tmp_path),
            "ACTOR_RUN_DIR": str(tmp_path),
            "ACTOR_WATCHDOG": str(watchdog),
        }
        process = subprocess.Popen(
            [sys.executable, RUN_ACTOR, "example-actor", "--config", "file"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return started[-1]

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with process:
            pass


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_actor_is_its_kinds_module_with_an_id_of_its_container_and_the_rest_of_the_arguments(
    start: Start,
) -> None:
    output, _ = start("print(sys.argv[1:])").communicate(timeout=20)
    assert output == f"{['--id', f'example-actor-{os.uname().nodename}', '--config', 'file']}\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)],
)
def test_the_exit_status_is_the_actors(start: Start, body: str, code: int) -> None:
    assert start(body).wait(20) == code


def test_it_is_alive_from_readiness_to_the_stop(start: Start, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    process = start("""
signal.signal(signal.SIGTERM, lambda *_: (tell("STOPPING=1"), open("/dev/stdin").close()))
open(os.environ["ACTOR_RUN_DIR"] + "/begun", "w").close()
while not os.path.exists(os.environ["ACTOR_RUN_DIR"] + "/go"): time.sleep(0.01)
tell("READY=1\\nSTATUS=ready")
signal.pause()
while not os.path.exists(os.environ["ACTOR_RUN_DIR"] + "/end"): time.sleep(0.01)
""")
    wait_for((tmp_path / "begun").exists)
    assert not alive.exists()
    (tmp_path / "go").touch()
    wait_for(alive.exists)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not alive.exists())
    assert process.poll() is None, "a draining actor goes on"
    (tmp_path / "end").touch()
    assert process.wait(20) == 0


def test_a_sign_of_life_is_told_by_the_age_of_the_file(start: Start, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    start("""
tell("READY=1")
while not os.path.exists(os.environ["ACTOR_RUN_DIR"] + "/go"): time.sleep(0.01)
tell("WATCHDOG=1")
signal.pause()
""")
    wait_for(alive.exists)
    os.utime(alive, (0, 0))
    (tmp_path / "go").touch()
    wait_for(lambda: alive.stat().st_mtime > 0)


def test_a_ready_actor_that_falls_silent_is_killed(start: Start) -> None:
    process = start("tell('READY=1'); signal.pause()", watchdog=0.05)
    assert process.wait(20) == 137
    assert process.stderr is not None
    assert "silent for 0.05 s" in process.stderr.read()


def test_an_actor_that_loads_a_model_has_all_the_time_it_needs(start: Start, tmp_path: Path) -> None:
    process = start("""
open(os.environ["ACTOR_RUN_DIR"] + "/begun", "w").close()
while not os.path.exists(os.environ["ACTOR_RUN_DIR"] + "/end"): time.sleep(0.01)
""", watchdog=0.01)  # fmt: skip
    wait_for((tmp_path / "begun").exists)
    time.sleep(0.05)
    (tmp_path / "end").touch()
    assert process.wait(20) == 0
