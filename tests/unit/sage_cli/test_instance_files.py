"""Runtime file, locks, ports, logs, manifest: files that must not lie after a crash."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from sage_cli.exits import CommandFailed, Exit
from sage_cli.log_files import LogFile, last_lines, log_names
from sage_cli.manifest import Manifest
from sage_cli.ports import PortReservations, is_free
from sage_cli.runtime import Instance, find_instance, is_running, own_instance, private_folder, write
from sage_core import ConfigurationError, Paths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    for variable in ("CONFIG_HOME", "DATA_HOME", "STATE_HOME", "CACHE_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{variable}", str(tmp_path / variable))
    return Paths.for_instance("one")


def instance(name: str = "one") -> Instance:
    return Instance(name, os.getpid(), "nats://secret@127.0.0.1:1", "http://127.0.0.1:8080", 1.0, ["gateway"])


def test_a_running_instance_is_found_and_gone_afterwards(paths: Paths) -> None:
    with own_instance("one", paths):
        write(paths, instance())
        assert find_instance("one") == instance()
        assert is_running(paths)
    assert not is_running(paths)
    assert not (paths.runtime / "instance.json").exists()
    with pytest.raises(CommandFailed) as found:
        find_instance("one")
    assert found.value.code is Exit.NOT_RUNNING


def test_the_runtime_file_is_for_its_user_alone(paths: Paths) -> None:
    with own_instance("one", paths):
        write(paths, instance())
        assert stat.S_IMODE((paths.runtime / "instance.json").stat().st_mode) == 0o600
        assert stat.S_IMODE(paths.runtime.stat().st_mode) == 0o700


def test_a_second_instance_of_the_same_name_is_refused_with_a_hint(paths: Paths) -> None:
    with own_instance("one", paths):
        write(paths, instance())
        with pytest.raises(CommandFailed, match="--name") as found, own_instance("one", paths):
            pass
        assert found.value.code is Exit.USAGE
        assert is_running(paths)
        assert find_instance("one") == instance()


def test_a_stale_runtime_file_is_no_instance_and_is_replaced(paths: Paths) -> None:
    paths.runtime.mkdir(parents=True)
    write(paths, instance())
    assert not is_running(paths)
    with pytest.raises(CommandFailed), own_instance("one", paths):
        find_instance("one")


def test_two_names_do_not_meet(paths: Paths) -> None:
    with own_instance("one", paths), own_instance("two", Paths.for_instance("two")):
        pass


def test_a_folder_that_others_may_enter_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    assert stat.S_IMODE(private_folder(tmp_path / "open").stat().st_mode) == 0o700


def test_a_link_in_place_of_the_runtime_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigurationError, match="XDG_RUNTIME_DIR"):
        private_folder(tmp_path / "link")


def test_a_port_in_use_is_not_reserved(tmp_path: Path) -> None:
    with PortReservations(tmp_path) as reserved, socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert not reserved.reserve(port)


def test_a_reserved_port_is_refused_to_others_until_it_is_let_go(tmp_path: Path) -> None:
    with PortReservations(tmp_path) as mine, PortReservations(tmp_path) as theirs:
        port = mine.reserve_any()
        assert is_free(port)
        assert not theirs.reserve(port)
        mine.close()
        assert theirs.reserve(port)


def test_a_log_is_bounded_and_keeps_its_end(tmp_path: Path) -> None:
    log = LogFile(tmp_path, "gateway", max_bytes=1000)
    for number in range(500):
        log.write(f"line {number}\n".encode())
    log.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert last_lines(tmp_path, "gateway", 3) == ["line 497", "line 498", "line 499"]
    assert len(last_lines(tmp_path, "gateway", 100)) == 100
    assert log_names(tmp_path) == ["gateway"]


def test_a_log_goes_on_after_a_restart(tmp_path: Path) -> None:
    for text in (b"first", b"second\n"):
        log = LogFile(tmp_path, "gateway")
        log.write(text)
        log.close()
    assert last_lines(tmp_path, "gateway", 10) == ["first", "second"]


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    log = LogFile(tmp_path, "gateway")
    log.write(b"x" * 10**6)
    log.close()
    assert (tmp_path / "gateway.log").stat().st_size < 20_000


def test_a_manifest_remembers_sources_by_digest(tmp_path: Path) -> None:
    manifest = Manifest.load(tmp_path, "docs")
    manifest.add("a.md", "1", "/docs")
    manifest.add("b.md", "2", "/docs", 3)
    manifest.save()
    again = Manifest.load(tmp_path, "docs")
    assert again.has("a.md", "1")
    assert not again.has("a.md", "changed")
    assert not Manifest.load(tmp_path, "other").has("a.md", "1")
    again.forget_all()
    assert not again.has("a.md", "1")
    assert again.indexed_from("/docs") == ["a.md", "b.md"]
    assert again.num_parts("b.md") == 3


def test_a_document_being_replaced_is_not_known_and_keeps_its_most_parts(tmp_path: Path) -> None:
    manifest = Manifest.load(tmp_path, "docs")
    manifest.add("a.md", "1", "/docs", 4)
    manifest.begin("a.md", "/docs", 2)
    assert not manifest.has("a.md", "1")
    assert manifest.num_parts("a.md") == 4


def test_a_damaged_manifest_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "indexed").mkdir()
    (tmp_path / "indexed" / "docs.json").write_text("{broken")
    assert not Manifest.load(tmp_path, "docs").has("a.md", "1")


@pytest.mark.parametrize("name", ["", "../etc", "a/b", ".hidden", "x" * 65])
def test_a_collection_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="--collection"):
        Manifest.load(tmp_path, name)
