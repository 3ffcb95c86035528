"""The planner's process: what it says about broken pipelines, and that it announces the good ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sage_actor import Roster
from sage_bus import connect
from sage_bus.testing import NatsServer
from sage_core import BusSettings

pytestmark = pytest.mark.integration


def environment(server: NatsServer, **extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SAGE_")}
    return kept | {"SAGE_BUS__URL": server.url} | extra


def test_broken_pipelines_end_the_process_with_status_2_and_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: one\nnodes:\n  - type: chat\n  - type: lmm\n")
    (tmp_path / "two.yaml").write_text("name: two\nnodes:\n  - type: chat\n  - type: prompt\n")
    with NatsServer() as server:
        ended = subprocess.run(
            [sys.executable, "-m", "sage_planner"],
            env=environment(server, SAGE_PLANNER__PIPELINES_DIR=str(tmp_path)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if str(tmp_path) in line]
    assert len(lines) == 2, ended.stderr
    assert f"{tmp_path}/one.yaml:4:11: unknown node type 'lmm'" in lines[0]
    assert f"{tmp_path}/two.yaml:4:5: output 'prompt' (prompt) yields Prompt" in lines[1]
    assert "Traceback" not in ended.stderr


async def test_a_planner_announces_its_pipelines_and_stops_cleanly() -> None:
    with NatsServer() as server:
        bus = await connect(BusSettings(url=server.url), name="test")
        roster = Roster(bus)
        await roster.start()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sage_planner", "--id", "planner-1", env=environment(server)
        )
        try:
            async with asyncio.timeout(30):
                while (found := roster.actors.get("planner-1")) is None or found.state != "ready":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert {(model.name, model.task) for model in found.models} == {
                ("pipeline/rag-docs", "pipeline"),
                ("pipeline/index-docs", "pipeline"),
            }
            assert found.max_in_flight == 64
        finally:
            process.terminate()
            code = await asyncio.wait_for(process.wait(), 20)
        assert code == 0
        await roster.stop()
        await bus.close()
