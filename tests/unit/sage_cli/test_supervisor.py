"""The supervisor with real, tiny processes: output is kept, nothing is left, ends are told apart."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from sage_cli.log_files import last_lines
from sage_cli.supervision import Limits, Member, Ready, Supervision
from sage_cli.supervisor import Launch, Outcome, Supervisor

LIMITS = Limits(first_delay=0.0, max_delay=0.0, max_failed_starts=2, stop_timeout=5.0)


def supervisor(folder: Path, script: str) -> Supervisor:
    supervision = Supervision((Member("one", 0, 0),), LIMITS)
    launch = Launch(["/bin/sh", "-c", script], {"PATH": os.environ["PATH"]})
    return Supervisor(supervision, lambda _: launch, folder, lambda: None)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_status_2_ends_everything_with_the_process_own_lines(tmp_path: Path) -> None:
    script = """echo '{"event":"json"}'; echo 'sage-one: a is wrong' >&2; echo 'sage-one: b is wrong' >&2; exit 2"""
    outcome = await supervisor(tmp_path, script).run(forever)
    assert outcome == Outcome(2, "sage-one: a is wrong\nsage-one: b is wrong")
    assert last_lines(tmp_path, "one", 9)[0] == '{"event":"json"}'


async def test_a_process_that_cannot_start_ends_everything_with_status_1(tmp_path: Path) -> None:
    outcome = await supervisor(tmp_path, "echo no luck; exit 1").run(forever)
    assert outcome.status == 1
    assert "no luck" in outcome.reason


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    made = Supervisor(
        Supervision((Member("one", 0, 0),), LIMITS),
        lambda _: Launch(["/no/such"], {}),
        tmp_path,
        lambda: None,
    )
    outcome = await made.run(forever)
    assert outcome.status == 1
    assert "cannot start" in outcome.reason


async def up(folder: Path) -> str:
    """Return the first line that the process wrote."""
    for _ in range(2000):
        if lines := last_lines(folder, "one", 1):
            return lines[0]
        await asyncio.sleep(0.005)
    raise TimeoutError


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_a_stop_ends_the_process_and_what_it_started(tmp_path: Path) -> None:
    made = supervisor(tmp_path, "sleep 60 & echo $!; trap 'exit 0' TERM; wait")
    grandchildren: list[int] = []

    async def companion() -> None:
        made.post(Ready("one"))
        grandchildren.append(int(await up(tmp_path)))
        made.stop()
        await forever()

    assert await asyncio.wait_for(made.run(companion), 20) == Outcome(0, "")
    for _ in range(200):
        if not is_alive(grandchildren[0]):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the grandchild still runs")


async def test_a_death_is_noticed_although_a_grandchild_holds_the_output(tmp_path: Path) -> None:
    outcome = await asyncio.wait_for(supervisor(tmp_path, "sleep 60 & exit 2").run(forever), 20)
    assert outcome.status == 2


async def test_what_the_companion_raises_stops_everything_first(tmp_path: Path) -> None:
    made = supervisor(tmp_path, "trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.01; done")

    async def companion() -> None:
        made.post(Ready("one"))
        await up(tmp_path)
        raise LookupError("the demo failed")

    with pytest.raises(LookupError, match="the demo failed"):
        await made.run(companion)
    assert last_lines(tmp_path, "one", 1) == ["drained"]


async def test_a_signal_to_us_is_a_stop(tmp_path: Path) -> None:
    made = supervisor(tmp_path, "trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done")

    async def companion() -> None:
        made.post(Ready("one"))
        await up(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
        await forever()

    assert await made.run(companion) == Outcome(0, "")


async def test_a_line_without_end_does_not_stop_the_process(tmp_path: Path) -> None:
    outcome = await supervisor(tmp_path, "head -c 300000 /dev/zero; echo; echo sage-one: last; exit 2").run(
        forever
    )
    assert outcome.reason == "sage-one: last"


async def test_a_death_is_noticed_although_somebody_outside_the_group_holds_the_output(
    tmp_path: Path,
) -> None:
    script = "setsid sleep 3 & exit 2"
    outcome = await asyncio.wait_for(supervisor(tmp_path, script).run(forever), 2.5)
    assert outcome.status == 2
