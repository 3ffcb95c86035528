"""The two kinds of bus that every promise is held to, and a server of one's own for tests that kill it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import uvloop

from sage_bus import Bus, MemoryBroker, NatsBus, connect
from sage_bus.testing import NatsServer
from sage_core import BusSettings


class MemoryCluster:
    """Buses on one in-process broker."""

    kind = "memory"

    def __init__(self) -> None:
        self._broker = MemoryBroker()
        self._buses: list[Bus] = []

    async def connect(self, name: str = "test", *, max_outbound: int = 65536) -> Bus:
        bus = self._broker.connect(name, max_outbound=max_outbound)
        self._buses.append(bus)
        return bus

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close()


class NatsCluster:
    """Buses on one real server."""

    kind = "nats"

    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self._buses: list[NatsBus] = []

    async def connect(
        self, name: str = "test", *, max_outbound: int = 65536, ping_interval: float = 2.0
    ) -> NatsBus:
        settings = BusSettings(url=self.server.url, max_outbound=max_outbound)
        bus = await connect(settings, name=name, ping_interval=ping_interval)
        self._buses.append(bus)
        return bus

    async def close(self) -> None:
        for bus in self._buses:
            await bus.close(1.0)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the event loop that services run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def shared_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.integration)])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[MemoryCluster | NatsCluster]:
    is_memory = request.param == "memory"
    made = MemoryCluster() if is_memory else NatsCluster(request.getfixturevalue("shared_server"))
    yield made
    await made.close()


@pytest.fixture
def server() -> Iterator[NatsServer]:
    """A server that the test may kill."""
    with NatsServer() as server:
        yield server


@pytest.fixture
async def nats(server: NatsServer) -> AsyncIterator[NatsCluster]:
    """Buses on the server of this test alone."""
    made = NatsCluster(server)
    yield made
    await made.close()
