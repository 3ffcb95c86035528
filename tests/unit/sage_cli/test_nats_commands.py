"""`sage nats`: secrets are made once and for one reader, and what is printed the server takes."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from sage_bus import server_binary
from sage_bus.nkey import public_key
from sage_cli.app import run
from sage_cli.credentials import make_credentials, read_users
from sage_core import ConfigurationError
from sage_wire.roles import Role

Printed = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SAGE_CONFIG", raising=False)
    return tmp_path / "secrets"


def test_every_role_gets_a_seed_for_itself_alone(folder: Path, capsys: Printed) -> None:
    assert run(["nats", "credentials", str(folder)]) == 0
    printed = capsys.readouterr().out
    users = json.loads((folder / "users.json").read_text())
    assert list(users) == [role.value for role in Role]
    for role in Role:
        file = folder / f"{role}.nk"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert public_key(file.read_text()) == users[role]
        assert f"made {file}" in printed
    assert len(set(users.values())) == len(Role)


def test_no_seed_is_ever_printed(folder: Path, capsys: Printed) -> None:
    for _ in range(2):
        assert run(["nats", "credentials", str(folder)]) == 0
        assert run(["nats", "credentials", str(folder), "--json"]) == 0
    printed = capsys.readouterr()
    for role in Role:
        assert (folder / f"{role}.nk").read_text().strip() not in printed.out + printed.err


def test_what_is_there_is_kept_and_what_is_missing_made(folder: Path, capsys: Printed) -> None:
    run(["nats", "credentials", str(folder)])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    capsys.readouterr()
    run(["nats", "credentials", str(folder), "--json"])
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}

    (folder / "gateway.nk").unlink()
    (folder / "users.json").unlink()
    run(["nats", "credentials", str(folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["changed"], told["made"]) == (True, [str(folder / "gateway.nk")])
    users = json.loads((folder / "users.json").read_text())
    assert users == told["users"]
    assert users["gateway"] != json.loads(before["users.json"])["gateway"]
    assert users["planner"] == json.loads(before["users.json"])["planner"]


def test_a_broken_seed_is_named_and_not_replaced(folder: Path, capsys: Printed) -> None:
    make_credentials(folder)
    (folder / "planner.nk").write_text("SUAB\n")
    assert run(["nats", "credentials", str(folder)]) == 2
    assert "planner.nk: not the nkey seed" in capsys.readouterr().err
    assert (folder / "planner.nk").read_text() == "SUAB\n"


def test_the_printed_configuration_is_accepted_and_the_same_each_time(
    folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    make_credentials(folder)
    arguments = ["nats", "config", "--store-dir", str(tmp_path), "--users", str(folder / "users.json")]
    printed = []
    for _ in range(2):
        assert run(arguments) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    config = tmp_path / "nats.conf"
    config.write_text(printed[0])
    checked = subprocess.run(
        [server_binary(), "-c", config, "-t"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_without_users_only_the_loopback_is_listened_on(
    folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    make_credentials(folder)
    run(["nats", "config", "--store-dir", str(tmp_path)])
    assert 'listen: "127.0.0.1:4222"' in capsys.readouterr().out
    run(["nats", "config", "--store-dir", str(tmp_path), "--users", str(folder / "users.json")])
    assert 'listen: "0.0.0.0:4222"' in capsys.readouterr().out
    run(["nats", "config", "--store-dir", str(tmp_path), "--host", "10.0.0.7", "--port", "5222"])
    assert 'listen: "10.0.0.7:5222"' in capsys.readouterr().out


def test_the_room_for_streams_can_be_chosen(tmp_path: Path, capsys: Printed) -> None:
    assert run(["nats", "config", "--store-dir", str(tmp_path), "--max-file-store", "3GiB"]) == 0
    assert f"max_file_store: {3 * 2**30}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key"),
        (["--tls-ca", "ca.pem"], "--tls-ca and --tls-verify need"),
        (["--tls-cert", "a.pem", "--tls-key", "a.key", "--tls-verify"], "without a CA"),
        (["--max-file-store", "much"], "--max-file-store"),
        (["--users", "/not/there"], "/not/there: No such file"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    tmp_path: Path, capsys: Printed, arguments: list[str], named: str
) -> None:
    assert run(["nats", "config", "--store-dir", str(tmp_path), *arguments]) == 2
    found = capsys.readouterr()
    assert named in found.err
    assert found.out == ""


@pytest.mark.parametrize("text", ['{"gatway": "U"}', '["gateway"]', "gateway", '{"gateway": 1}'])
def test_a_users_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "users.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=str(file)):
        read_users(file)


def test_provisioning_without_a_server_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    make_credentials(folder)
    monkeypatch.setenv("SAGE_BUS__URL", "nats://127.0.0.1:9")
    monkeypatch.setenv("SAGE_BUS__CONNECT_TIMEOUT", "300ms")
    monkeypatch.setenv("SAGE_BUS__NKEY_SEED_FILE", str(folder / "provisioner.nk"))
    assert run(["nats", "provision"]) == 1
    assert "no NATS server at nats://127.0.0.1:9" in capsys.readouterr().err
