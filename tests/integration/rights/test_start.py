"""A process that lacks a right, or something that it needs, says so at its start: which role, what, and the remedy."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guarded_cluster import GuardedServer, closing
from sage_bus import BusEvent, NatsBus, connect
from sage_bus.nkey import new_seed, public_key
from sage_bus.server_users import render_users
from sage_bus.testing import NatsServer
from sage_cli.credentials import make_credentials, read_users
from sage_core import BusError, BusSettings, BusUnavailable, ConfigurationError
from sage_wire.rights import rights
from sage_wire.roles import ACTOR_ROLES, Role
from sage_wire.stores import QUOTAS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("role", list(Role))
async def test_a_server_with_the_rights_of_a_role_lets_it_in(guarded: GuardedServer, role: Role) -> None:
    settings = guarded.settings(role, is_provisioned=False)
    async with closing(await connect(settings, name="test", role=role)) as bus:
        assert bus.inbox_prefix.startswith(f"_INBOX_{role}.")
        if role in ACTOR_ROLES | {Role.OPERATOR}:
            await bus.round_trip()
    assert guarded.violations == []


@pytest.mark.parametrize("role", sorted(ACTOR_ROLES))
@pytest.mark.parametrize("verb", ["publish", "subscribe"])
async def test_any_one_right_that_is_missing_is_named(tmp_path: Path, role: Role, verb: str) -> None:
    make_credentials(tmp_path)
    text = render_users(read_users(tmp_path / "users.json"))
    start = text.index(f"# {role}\n")
    missing = [
        pattern for pattern in getattr(rights(role), verb) if not pattern.startswith(("_INBOX", "$SYS"))
    ]
    for pattern in (missing[0], missing[-1]):
        at = text.index(f'"{pattern}"', text.index(f"{verb}:", start))
        fewer = text[:at] + text[at + len(pattern) + 2 :]
        with NatsServer(extra_config=fewer) as server:
            settings = BusSettings(url=server.url, nkey_seed_file=tmp_path / f"{role}.nk")
            with pytest.raises(ConfigurationError) as refused:
                await connect(settings, name="test", role=role)
        assert f"role {role} may not {verb}" in refused.value.message
        assert f" {pattern};" in refused.value.message
        assert "sage nats config --users" in refused.value.message


async def test_the_seed_of_another_role_is_told(guarded: GuardedServer) -> None:
    settings = guarded.settings(Role.GATEWAY, is_provisioned=False)
    with pytest.raises(ConfigurationError, match=r"role planner may not .*bus\.nkey_seed_file"):
        await connect(settings, name="test", role=Role.PLANNER)


async def test_a_seed_that_the_server_does_not_know_is_told(guarded: GuardedServer, tmp_path: Path) -> None:
    seed = tmp_path / "stranger.nk"
    seed.write_text(new_seed())
    settings = BusSettings(url=guarded.url, nkey_seed_file=seed, connect_timeout=0.5)
    with pytest.raises(BusUnavailable, match="Authorization Violation"):
        await connect(settings, name="test", role=Role.GATEWAY)


async def test_without_a_seed_nobody_gets_in(guarded: GuardedServer) -> None:
    with pytest.raises(BusUnavailable, match="Authorization Violation"):
        await connect(BusSettings(url=guarded.url, connect_timeout=0.5), name="test", role=Role.GATEWAY)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.PLANNER, Role.SCHEDULER, Role.PUBLISHER, Role.OPERATOR])
async def test_what_was_not_provisioned_is_named_with_the_command_that_makes_it(
    guarded: GuardedServer, role: Role
) -> None:
    with pytest.raises(ConfigurationError, match=r"stream \w+ is missing; run `sage nats provision`"):
        await connect(guarded.settings(role), name="test", role=role)
    # It asked, and tried to make nothing.
    assert guarded.violations == []


async def test_who_tries_to_make_what_is_missing_is_told_to_have_it_provisioned(
    guarded: GuardedServer,
) -> None:
    settings = guarded.settings(Role.GATEWAY, is_provisioned=False)
    async with closing(await connect(settings, name="test", role=Role.GATEWAY)) as bus:
        with pytest.raises(BusError, match=r"stream\.create\.kv_sage_quotas; .*bus\.is_provisioned = true"):
            await bus.key_value(QUOTAS.name, ttl=QUOTAS.ttl, is_durable=QUOTAS.is_durable)


async def test_a_key_that_was_replaced_is_cut_off_by_a_reload(guarded: GuardedServer) -> None:
    settings = guarded.settings(Role.OPERATOR, is_provisioned=False)
    async with closing(await connect(settings, name="test", role=Role.OPERATOR)) as bus:
        gone = asyncio.Event()
        bus.on_event(lambda event, _: gone.set() if event is BusEvent.DISCONNECTED else None)
        guarded.replace(Role.OPERATOR)
        await asyncio.wait_for(gone.wait(), 10)
    async with closing(await connect(settings, name="test", role=Role.OPERATOR)) as bus:
        await bus.round_trip()


async def test_who_keeps_nothing_on_the_server_needs_nothing_provisioned(guarded: GuardedServer) -> None:
    settings = guarded.settings(Role.LLM_WORKER)
    async with closing(await connect(settings, name="test", role=Role.LLM_WORKER)) as bus:
        await bus.round_trip()


async def test_a_consumer_that_is_missing_is_named(anybody: NatsBus) -> None:
    await anybody.provision(responses_bytes=2**20, job_ack_wait=30.0)
    await anybody._connection.ask(b"$JS.API.CONSUMER.DELETE.SAGE_JOBS.workers", b"", timeout=5)
    url = anybody._connection.client.connected_url
    assert url is not None
    settings = BusSettings(url=url.geturl(), is_provisioned=True)
    with pytest.raises(ConfigurationError, match="consumer workers of stream SAGE_JOBS is missing"):
        await connect(settings, name="test", role=Role.PLANNER)


@pytest.mark.parametrize("kind", sorted(ACTOR_ROLES))
def test_an_actor_with_the_wrong_seed_ends_with_one_line_that_names_the_remedy(
    guarded: GuardedServer, tmp_path: Path, kind: Role
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGE_")}
    folders = dict.fromkeys(
        ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"), str(tmp_path)
    )
    done = subprocess.run(
        [sys.executable, "-m", "sage_" + kind.replace("-", "_"), "--id", "a-1"],
        env=environment | folders | guarded.environment(Role.PUBLISHER),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert f"role {kind} may not" in last
    assert "sage nats config --users" in last
    assert public_key((guarded.folder / "publisher.nk").read_text()) not in last
