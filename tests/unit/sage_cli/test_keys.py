"""`sage keys`: what it prints, what it keeps, and that a gateway takes what it wrote."""

from __future__ import annotations

import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sage_bus import MemoryBus
from sage_cli.app import run
from sage_cli.exits import CommandFailed
from sage_cli.key_file_changes import create_key, key_state, known_keys, revoke_key, rotate_key
from sage_core import FakeClock
from sage_gateway import GatewaySection
from sage_gateway.access import Gate
from sage_gateway.access.keys_file import KeyRecord
from sage_gateway.errors import HttpRefused

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SAGE_CONFIG", raising=False)
    return tmp_path / "sage" / "keys.toml"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["keys", *arguments]) == 0
    return capsys.readouterr().out


def known(path: Path, key: str, now: datetime = NOW) -> str | None:
    gate = Gate(GatewaySection(keys_file=path), clock=FakeClock(), bus=MemoryBus(), wall=now.timestamp)
    try:
        return gate.identify({b"authorization": f"Bearer {key}".encode()}).name
    except HttpRefused:
        return None


def test_a_key_is_printed_alone_and_kept_as_a_hash_that_only_its_owner_reads(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = said(capsys, "create", "--name", "website").strip()
    assert key.startswith("sk-sage-")
    assert len(key) == 8 + 43
    assert key not in path.read_text()
    assert hashlib.sha256(key.encode()).hexdigest() in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert known(path, key) == "website"
    assert known(path, key + "x") is None


def test_json_gives_the_key_its_name_and_its_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(said(capsys, "create", "--name", "website", "--json"))
    assert set(made) == {"name", "key", "file"}
    assert known(Path(made["file"]), made["key"]) == "website"
    assert Path(made["file"]) == path
    rotated = json.loads(said(capsys, "rotate", "website", "--json"))
    assert rotated["key"] != made["key"]


def test_rights_are_listed_as_they_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    rights = ("--tenant", "acme", "--models", "tiny", "--models", "pipeline/*", "--class", "batch")
    said(capsys, "create", "--name", "a", *rights, "--rpm", "5", "--tpm", "6", "--concurrency", "7")
    said(capsys, "create", "--name", "b", "--expires", "90d")
    said(capsys, "revoke", "a")
    first, second = json.loads(said(capsys, "list", "--json"))
    assert {name: first[name] for name in first if name != "secrets"} == {
        "name": "a",
        "tenant": "acme",
        "state": "revoked",
        "models": ["tiny", "pipeline/*"],
        "classes": ["batch"],
        "rpm": 5,
        "tpm": 6,
        "concurrency": 7,
    }
    assert second["state"] == "active"
    assert second["models"] is None
    expires = datetime.fromisoformat(second["secrets"][0]["expires"])
    assert timedelta(days=89) < expires - datetime.now(UTC) <= timedelta(days=90)
    shown = said(capsys, "list")
    assert first["secrets"][0]["sha256"][:8] in shown
    assert first["secrets"][0]["sha256"] not in shown


def test_both_secrets_of_a_rotated_key_are_good_until_the_overlap_ends(path: Path) -> None:
    old = create_key(path, "website", KeyRecord((), rpm=5), NOW, None)
    new = rotate_key(path, "website", NOW, timedelta(hours=2))
    soon, later = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
    assert [known(path, key, soon) for key in (old, new)] == ["website", "website"]
    assert [known(path, key, later) for key in (old, new)] == [None, "website"]
    assert known_keys(path)["website"].rpm == 5
    assert key_state(known_keys(path)["website"], later) == "active"


def test_rotating_without_overlap_ends_the_old_secret_at_once(path: Path) -> None:
    old = create_key(path, "website", KeyRecord(()), NOW, None)
    new = rotate_key(path, "website", NOW, timedelta(0))
    assert [known(path, key) for key in (old, new)] == [None, "website"]


def test_rotating_never_prolongs_a_secret_and_drops_expired_ones(path: Path) -> None:
    create_key(path, "website", KeyRecord(()), NOW, timedelta(hours=1))
    rotate_key(path, "website", NOW, timedelta(days=1))
    first, _ = known_keys(path)["website"].secrets
    assert first.expires == NOW + timedelta(hours=1)
    rotate_key(path, "website", NOW + timedelta(hours=3), timedelta(days=1))
    assert len(known_keys(path)["website"].secrets) == 2


def test_a_revoked_key_keeps_its_name_until_it_is_forgotten(path: Path) -> None:
    key = create_key(path, "website", KeyRecord(()), NOW, None)
    revoke_key(path, "website", is_forgotten=False)
    assert known(path, key) is None
    with pytest.raises(CommandFailed, match="there is a key"):
        create_key(path, "website", KeyRecord(()), NOW, None)
    with pytest.raises(CommandFailed, match="was revoked"):
        rotate_key(path, "website", NOW, timedelta(0))
    revoke_key(path, "website", is_forgotten=True)
    create_key(path, "website", KeyRecord(()), NOW, None)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("rotate", "nobody"), 1, "there is no key 'nobody'"),
        (("revoke", "nobody"), 1, "there is no key 'nobody'"),
        (("create", "--name", "a b"), 2, "the name of a key is 'a b'"),
        (("create", "--name", "a", "--class", "fast"), 2, "a.classes: expected some of interactive"),
        (("create", "--name", "a", "--tenant", "b c"), 2, "a.tenant"),
        (("create", "--name", "a", "--rpm", "0"), 2, "--rpm"),
        (("create", "--name", "a", "--expires", "soon"), 2, "--expires"),
        (("create",), 2, "--name"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, told: str
) -> None:
    create_key(path, "website", KeyRecord(()), NOW, None)
    before = path.read_bytes()
    assert run(["keys", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.toml"]


def test_a_file_that_is_wrong_is_not_written_over(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.parent.mkdir()
    path.write_text("[keys.website]\nrpm = 1\n")
    path.chmod(0o600)
    assert run(["keys", "create", "--name", "a"]) == 2
    assert "line 1" in capsys.readouterr().err
    assert path.read_text() == "[keys.website]\nrpm = 1\n"


def test_settings_name_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAGE_GATEWAY__KEYS_FILE", str(tmp_path / "deep" / "other.toml"))
    key = said(capsys, "create", "--name", "website").strip()
    assert known(tmp_path / "deep" / "other.toml", key) == "website"


def test_keys_made_at_the_same_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: create_key(path, f"key-{n}", KeyRecord(()), NOW, None), range(30)))
    assert len(known_keys(path)) == 30


@pytest.mark.parametrize("command", ["create", "list", "rotate", "revoke"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Example:" in said(capsys, command, "--help")


def test_config_check_finds_what_a_gateway_would_refuse(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "check"]) == 0
    create_key(path, "website", KeyRecord(()), NOW, None)
    path.chmod(0o644)
    assert run(["config", "check"]) == 2
    assert "chmod 600" in capsys.readouterr().err
    path.unlink()
    monkeypatch.setenv("SAGE_GATEWAY__HOST", "0.0.0.0")
    assert run(["config", "check"]) == 2
    assert "sage keys create" in capsys.readouterr().err
