"""Connecting: what works at once, and what is refused with one precise message that shows no secret."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from sage_bus import connect
from sage_bus.testing import NatsServer, free_port
from sage_core import BusError, BusSettings, BusUnavailable, ConfigurationError

pytestmark = pytest.mark.integration

TOKEN = 'authorization { token: "top-secret" }\n'


async def test_without_a_server_the_limit_is_kept_and_the_reason_told():
    settings = BusSettings(url=f"nats://user:top-secret@127.0.0.1:{free_port()}", connect_timeout=0.3)
    started = time.perf_counter()
    with pytest.raises(BusUnavailable, match=r"answered within 0\.3 s") as refused:
        await connect(settings, name="test")
    assert time.perf_counter() - started < 2
    assert "top-secret" not in refused.value.message


async def test_a_server_that_starts_late_is_waited_for():
    server = NatsServer()
    settings = BusSettings(url=server.url)
    connecting = asyncio.create_task(connect(settings, name="test"))
    await asyncio.sleep(0.05)
    with server:
        bus = await connecting
        await bus.round_trip()
        await bus.close()


async def test_a_token_in_the_url_is_used_and_a_wrong_one_is_told_apart():
    with NatsServer(extra_config=TOKEN) as server:
        bus = await connect(BusSettings(url=server.url.replace("nats://", "nats://top-secret@")), name="test")
        await bus.close()
        wrong = BusSettings(url=server.url.replace("nats://", "nats://wrong@"), connect_timeout=0.3)
        with pytest.raises(BusUnavailable, match="Authorization Violation"):
            await connect(wrong, name="test")


async def test_the_second_of_two_servers_is_found():
    with NatsServer() as server:
        bus = await connect(BusSettings(url=f"nats://127.0.0.1:{free_port()}, {server.url}"), name="test")
        await bus.round_trip()
        await bus.close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": " , "}, r"bus\.url is empty"),
        ({"url": "nats://[", "connect_timeout": 0.3}, r"bus\.url"),
        ({"nkey_seed_file": Path("/not/there")}, r"bus\.nkey_seed_file: cannot read /not/there"),
        ({"tls_ca_file": Path("/not/there")}, r"bus\.tls_ca_file"),
    ],
)
async def test_settings_that_can_never_work_are_named(options, named):
    with pytest.raises(ConfigurationError, match=named):
        await connect(BusSettings(**options), name="test")


async def test_an_inbox_prefix_that_peers_would_not_answer_is_refused():
    with pytest.raises(BusError, match="_INBOX"):
        await connect(BusSettings(), name="test", role="a b")


async def test_a_bucket_made_otherwise_is_refused_by_name():
    with NatsServer() as server:
        bus = await connect(BusSettings(url=server.url), name="test")
        await bus.key_value("values", ttl=60)
        with pytest.raises(ConfigurationError, match="max_age"):
            await bus.key_value("values", ttl=30)
        await bus.job_queue("values", "jobs.a")
        with pytest.raises(ConfigurationError):
            await bus.job_queue("others", "jobs.a")  # two streams on one subject
        await bus.close()
