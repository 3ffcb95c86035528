"""Quotas of one key at three gateways on a real nats-server: exact, cheap, and closed where the server is gone."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from sage_bus import NatsBus, connect
from sage_bus.testing import NatsServer
from sage_core import BusSettings, SystemClock
from sage_gateway import GatewaySection
from sage_gateway.access import Caller, Gate, Granted, Quota
from sage_gateway.errors import HttpRefused
from sage_wire import subjects

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

TIMEOUT = 1.0


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the event loop that gateways run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture
async def buses(server: NatsServer) -> AsyncIterator[list[NatsBus]]:
    made = [await connect(BusSettings(url=server.url), name=f"gateway-{n}") for n in range(3)]
    yield made
    for bus in made:
        await bus.close(0.5)


@pytest.fixture
async def gates(buses: list[NatsBus], tmp_path: Path) -> AsyncIterator[list[Gate]]:
    path = tmp_path / "keys.toml"
    path.touch(mode=0o600)
    section = GatewaySection(keys_file=path, quota_timeout=TIMEOUT)
    made = [Gate(section, clock=SystemClock(), bus=bus) for bus in buses]
    yield made
    for gate in made:
        await gate.close()


def ask(gate: Gate, caller: Caller, num_tokens: int = 0) -> asyncio.Future[Granted | HttpRefused]:
    decided: asyncio.Future[Granted | HttpRefused] = asyncio.get_running_loop().create_future()
    gate.admit(caller, num_tokens, decided.set_result)
    return decided


async def hammer(gate: Gate, caller: Caller, num_tokens: int, rounds: int) -> Counter[str]:
    """Ask in bursts, as a client with eight connections does; return how many were told what."""
    told: Counter[str] = Counter()
    for _ in range(rounds):
        for answer in await asyncio.gather(*(ask(gate, caller, num_tokens) for _ in range(8))):
            told["granted" if isinstance(answer, Granted) else answer.http_error.code] += 1
    return told


@pytest.mark.parametrize(
    ("quota", "num_tokens", "limit"),
    [
        (Quota(requests_per_minute=500), 0, 500),
        (Quota(tokens_per_minute=5000), 10, 500),
        (Quota(requests_per_minute=600, tokens_per_minute=4990), 10, 499),
        (Quota(concurrency=77), 0, 77),
    ],
)
async def test_three_gateways_that_are_hammered_admit_exactly_the_limit(
    gates: list[Gate], quota: Quota, num_tokens: int, limit: int
) -> None:
    caller = Caller(name="busy", quota=quota)
    begun = time.monotonic()
    told = await asyncio.gather(*(hammer(gate, caller, num_tokens, 60) for gate in gates))
    assert time.monotonic() - begun < 60, "so slow that a second window began"
    total = sum(told, Counter())
    assert total == {"granted": limit, "rate_limit_exceeded": 3 * 60 * 8 - limit}


async def test_what_one_gateway_gives_back_another_may_use(gates: list[Gate]) -> None:
    caller = Caller(name="shared", quota=Quota(tokens_per_minute=1000, concurrency=10))
    granted = [await ask(gates[0], caller, 100) for _ in range(10)]
    assert isinstance(await ask(gates[1], caller, 1), HttpRefused)
    for each in granted:
        assert isinstance(each, Granted)
        gates[0].settle(each, 60)
    # A gateway's next decision is written together with what it gave back before.
    assert isinstance(await ask(gates[0], caller, 0), Granted)
    taken = [await ask(gates[1], caller, 100) for _ in range(5)]
    assert [isinstance(answer, Granted) for answer in taken] == [True] * 4 + [False]


async def test_many_requests_of_a_key_cost_few_writes(gates: list[Gate], buses: list[NatsBus]) -> None:
    caller = Caller(name="many", quota=Quota(requests_per_minute=10_000))
    await ask(gates[0], caller)
    bucket = await buses[0].key_value(subjects.QUOTAS_BUCKET)
    key = subjects.quota_entry("many")
    before = await bucket.get(key)
    answers = await asyncio.gather(*(ask(gates[0], caller) for _ in range(5000)))
    after = await bucket.get(key)
    assert all(isinstance(answer, Granted) for answer in answers)
    assert before is not None
    assert after is not None
    assert after.revision - before.revision == 1


async def test_a_frozen_server_refuses_within_the_timeout_and_lets_nobody_through(
    gates: list[Gate], server: NatsServer
) -> None:
    caller = Caller(name="frozen", quota=Quota(requests_per_minute=1000))
    assert isinstance(await ask(gates[0], caller), Granted)
    server.freeze()
    begun = time.monotonic()
    answers = await asyncio.gather(*(ask(gate, caller) for gate in gates for _ in range(5)))
    waited = time.monotonic() - begun
    server.thaw()
    for answer in answers:
        assert isinstance(answer, HttpRefused)
        assert (answer.http_error.status, answer.http_error.code) == (503, "quota_unavailable")
    assert waited < TIMEOUT + 0.5


async def test_after_a_restart_of_the_server_the_bucket_is_made_anew_and_the_limit_holds_again(
    gates: list[Gate], server: NatsServer
) -> None:
    caller = Caller(name="restarted", quota=Quota(requests_per_minute=30))
    assert sum((await hammer(gates[0], caller, 0, 10)).values()) == 80
    server.kill()
    server.start()
    counts: Counter[str] = Counter()
    while not counts["granted"]:  # until all have reconnected; what is not decided meanwhile is refused
        counts = sum(await asyncio.gather(*(hammer(gate, caller, 0, 5) for gate in gates)), Counter())
    counts += sum(await asyncio.gather(*(hammer(gate, caller, 0, 10) for gate in gates)), Counter())
    assert counts["granted"] == 30


async def test_hosts_clocks_do_not_matter(buses: list[NatsBus], tmp_path: Path) -> None:
    """Each gateway's own clock begins somewhere else; the window is the broker's."""
    path = tmp_path / "keys.toml"
    path.touch(mode=0o600)
    section = GatewaySection(keys_file=path)
    gates = [
        Gate(section, clock=Shifted(shift), bus=bus)
        for shift, bus in zip((0.0, 1e6, -1e5), buses, strict=True)
    ]
    caller = Caller(name="clocks", quota=Quota(requests_per_minute=100))
    told = await asyncio.gather(*(hammer(gate, caller, 0, 20) for gate in gates))
    assert sum(told, Counter())["granted"] == 100
    for gate in gates:
        await gate.close()


class Shifted:
    """A host's clock."""

    def __init__(self, shift: float) -> None:
        self._shift = shift

    def now(self) -> float:
        return time.monotonic() + self._shift
