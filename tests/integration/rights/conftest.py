"""A server with users for one test, buses as any role, certificates for all tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from guarded_cluster import Certificates, GuardedServer, closing, make_certificates
from sage_bus import NatsBus, connect
from sage_bus.testing import NatsServer
from sage_core import BusSettings
from sage_wire.roles import Role

ConnectAs = Callable[[Role], Awaitable[NatsBus]]


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the event loop that services run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedServer]:
    """A server with users on which nothing has been provisioned."""
    made = GuardedServer(tmp_path / "secrets")
    with made.server:
        yield made


@pytest.fixture
async def anybody() -> AsyncIterator[NatsBus]:
    """A bus on a server that is open to everybody."""
    with NatsServer() as server:
        async with closing(await connect(BusSettings(url=server.url), name="test")) as bus:
            yield bus


@pytest.fixture
async def connect_as(guarded: GuardedServer) -> AsyncIterator[ConnectAs]:
    """Connects as a role to a provisioned server; everything is closed at the end."""
    buses: list[NatsBus] = []

    async def connect_as(role: Role) -> NatsBus:
        bus = await connect(guarded.settings(role), name="test", role=role)
        buses.append(bus)
        return bus

    yield connect_as
    for bus in buses:
        await bus.close(1.0)
