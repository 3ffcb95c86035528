"""The users part of the server's configuration: what is in it the server takes, and nothing gives more than rights."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sage_bus.nkey import new_seed, public_key
from sage_bus.server_config import ServerTls, render, server_binary
from sage_bus.server_users import render_users
from sage_core import ConfigurationError
from sage_wire.rights import rights
from sage_wire.roles import Role


@pytest.fixture
def users() -> dict[Role, str]:
    return {role: public_key(new_seed()) for role in Role}


def block(text: str, role: Role) -> str:
    """Return the lines of one user."""
    return text.partition(f"# {role}\n")[2].partition("\n    # ")[0]


def test_each_role_has_its_key_and_the_lists_of_its_rights(users):
    text = render_users(users)
    for role in Role:
        mine, allowed = block(text, role), rights(role)
        assert f'nkey: "{users[role]}"' in mine
        publish, _, subscribe = mine.partition("subscribe:")
        assert tuple(re.findall(r'^ {10}"(.*)"$', publish, re.MULTILINE)) == allowed.publish
        assert tuple(re.findall(r'^ {10}"(.*)"$', subscribe, re.MULTILINE)) == allowed.subscribe
        assert ('allow_responses: { max: 1, expires: "5s" }' in mine) == bool(allowed.max_responses)


def test_a_role_without_a_key_is_left_out(users):
    del users[Role.PUBLISHER]
    assert "# publisher" not in render_users(users)


def test_the_same_users_give_the_same_text_in_whatever_order(users):
    assert render_users(users) == render_users(dict(reversed(list(users.items()))))


def test_the_server_accepts_the_users(users, tmp_path):
    config = tmp_path / "nats.conf"
    config.write_text(render(port=4222, store_dir=tmp_path / "store", users=users))
    checked = subprocess.run(
        [server_binary(), "-c", config, "-t"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_a_key_that_is_none_or_anothers_is_refused_by_role(users):
    with pytest.raises(ConfigurationError, match="public key of gateway is 'SU'"):
        render_users({**users, Role.GATEWAY: "SU"})
    with pytest.raises(ConfigurationError, match="gateway, planner have the same public key"):
        render_users({**users, Role.PLANNER: users[Role.GATEWAY]})
    with pytest.raises(ConfigurationError, match="no users"):
        render_users({})


def test_clients_are_asked_for_a_certificate_only_where_that_is_said(tmp_path):
    plain = ServerTls(Path("/c"), Path("/k"), Path("/ca"))
    assert "verify: false" in render(port=4222, store_dir=tmp_path, tls=plain)
    checked = ServerTls(Path("/c"), Path("/k"), Path("/ca"), is_client_checked=True)
    assert "verify: true" in render(port=4222, store_dir=tmp_path, tls=checked)
    with pytest.raises(ConfigurationError, match="without a CA"):
        render(port=4222, store_dir=tmp_path, tls=ServerTls(Path("/c"), Path("/k"), is_client_checked=True))
    with pytest.raises(ConfigurationError, match="TLS key"):
        render(port=4222, store_dir=tmp_path, tls=ServerTls(Path("/c"), Path('/"')))
