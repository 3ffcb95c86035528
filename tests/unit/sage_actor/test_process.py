"""The edges of a process: service manager, supervisor, help, and settings that are wrong."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from sage_actor import Actor, run_service
from sage_actor.help import setting_lines
from sage_actor.notify import notify, watchdog_interval
from sage_core import ServiceSettings
from sage_core.settings import Section


class GatewaySection(Section):
    port: int = Field(8080, description="Port of the HTTP edge.")
    key_file: Path | None = Field(None, description="File with API keys.")


class GatewaySettings(ServiceSettings):
    gateway: GatewaySection = Field(default_factory=GatewaySection)


def run(*argv: str) -> int:
    return run_service(
        kind="gateway",
        settings_type=GatewaySettings,
        build=lambda settings, context: Actor(context),
        description="The HTTP edge.",
        argv=argv,
    )


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SAGE_")]:
        monkeypatch.delenv(name)


def test_the_service_manager_is_told_through_its_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        assert notify("READY=1", {"NOTIFY_SOCKET": path})
        assert manager.recv(64) == b"READY=1"


def test_the_abstract_namespace_is_understood() -> None:
    name = f"sage-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        assert notify("STOPPING=1", {"NOTIFY_SOCKET": "@" + name})
        assert manager.recv(64) == b"STOPPING=1"


def test_without_a_service_manager_nothing_is_sent(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_fed_three_times_per_limit_and_only_where_it_is_ours(
    environ: Any, seconds: Any
) -> None:
    assert watchdog_interval(environ) == seconds


def test_every_setting_is_listed_with_key_variable_default_and_meaning() -> None:
    lines = {line.key: line for line in setting_lines(GatewaySettings)}
    assert lines["gateway.port"].variable == "SAGE_GATEWAY__PORT"
    assert lines["gateway.port"].default == "8080"
    assert lines["gateway.port"].description == "Port of the HTTP edge."
    assert lines["gateway.key_file"].default == "(unset)"
    assert lines["instance"].variable == "SAGE_INSTANCE"
    assert lines["bus.max_outbound_bytes"].default == "64MiB"
    assert lines["bus.connect_timeout"].default == "10s"
    assert {"bus.url", "telemetry.otlp_endpoint", "actor.max_slots"} <= set(lines)
    assert all(line.description for line in lines.values())


def test_help_teaches_description_settings_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        run("--help")
    assert exited.value.code == 0
    text = capsys.readouterr().out
    for expected in (
        "The HTTP edge.",
        "--config",
        "SAGE_GATEWAY__PORT",
        "8080",
        "Port of the HTTP edge.",
        "[bus]",
    ):
        assert expected in text
    assert text.index("[gateway]") < text.index("[bus]"), "what is this service's own comes first"


@pytest.mark.parametrize(
    ("content", "argv", "expected"),
    [
        ("[gateway]\nport = 'many'\n", (), ["gateway.port", "'many'", "sage.toml"]),
        ("[gateway]\nprot = 1\n", (), ["gateway.prot", "sage.toml"]),
        ("[gatway]\nport = 1\n", (), ["[gatway]", "sage.toml"]),
        ("gateway = [\n", (), ["sage.toml", "not TOML"]),
        ("", ("--id", "a b"), ["--id", "'a b'"]),
        ("", ("--parent-pid", "1"), ["--parent-pid", "1"]),
        (
            "[telemetry]\notlp_endpoint = 'localhost:4318'\n",
            (),
            ["telemetry.otlp_endpoint", "'localhost:4318'"],
        ),
    ],
)
def test_wrong_settings_exit_with_2_and_one_line_that_names_them(
    content: str,
    argv: tuple[str, ...],
    expected: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sage_actor.service.die_with_parent", lambda pid: False)
    path = tmp_path / "sage.toml"
    path.write_text(content)
    assert run("--config", str(path), *argv) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("sage-gateway: ")
    for part in expected:
        assert part in text


def test_a_missing_settings_file_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", "/nowhere/sage.toml") == 2
    assert "/nowhere/sage.toml does not exist" in capsys.readouterr().err
