"""The reference pages name every key that files may have, and their examples work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sage_cli.app import run
from sage_simulator import TraceFormat, read_classes, read_fleet
from sage_simulator.fleet_file import FLEET_KEYS
from sage_simulator.profiles import PROFILE_KEYS
from sage_simulator.slo_classes import CLASS_KEYS
from sage_simulator.traces import azure, burstgpt, mooncake, servegen

DOCS = Path(__file__).parents[3] / "docs"
FLEETS = (DOCS / "reference" / "fleets.md").read_text("utf-8")
TRACES = (DOCS / "reference" / "traces.md").read_text("utf-8")
HOW_TO = (DOCS / "how-to" / "simulate.md").read_text("utf-8")


@pytest.mark.parametrize("table", FLEET_KEYS)
def test_every_key_of_a_fleet_is_described(table: str) -> None:
    prefix = f"{table}." if table in ("network", "telemetry") else ""
    for key in FLEET_KEYS[table]:
        assert f"`{prefix}{key}`" in FLEETS


def test_every_key_of_profiles_and_classes_and_every_format_is_described() -> None:
    assert [key for key in PROFILE_KEYS if f"`{key}`" not in FLEETS] == []
    assert [key for key in CLASS_KEYS if not re.search(rf"\b{key}\b", HOW_TO)] == []
    assert [name for name in TraceFormat if f"`{name}`" not in TRACES] == []
    columns = [*azure.COLUMNS, *burstgpt.COLUMNS, *mooncake.FIELDS, *servegen.COLUMNS]
    assert [column for column in columns if f"`{column}`" not in TRACES] == []


def test_the_examples_are_read(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(re.findall(r"```toml\n(.*?)```", FLEETS, re.DOTALL)[0])
    assert len(read_fleet(tmp_path / "fleet.toml").instances) == 3
    (tmp_path / "classes.toml").write_text(re.findall(r"```toml\n(.*?)```", HOW_TO, re.DOTALL)[0])
    assert [found.name for found in read_classes(tmp_path / "classes.toml")] == ["tight", "vectors"]


def test_the_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--help"]) == 0
    text = capsys.readouterr().out
    named = set(re.findall(r"--[a-z][a-z-]+", HOW_TO + TRACES + FLEETS))
    assert sorted(option for option in named if option not in text) == []
