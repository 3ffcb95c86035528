"""Quotas shared by gateways through one bucket: exact, combined into few writes, and closed where the bus is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sage_bus import Entry, KeyValue, MemoryBroker, MemoryBus
from sage_core import BusUnavailable, FakeClock
from sage_gateway.access.ledger import Granted, KeyLedger
from sage_gateway.access.quota import LEASE_SECONDS, Quota
from sage_gateway.access.quota_store import QuotaStore
from sage_gateway.errors import HttpRefused
from sage_wire import subjects


class Gateways:
    """Any number of gateways' ledgers of one key, on one broker and one clock."""

    def __init__(self) -> None:
        self.clock = FakeClock(100.0)
        self.broker = MemoryBroker(wall=lambda: 1_800_000_000.0 + self.clock.now())
        self.ledgers: list[KeyLedger] = []
        self.buses: list[MemoryBus] = []

    def add(self, *, bus: Any = None, timeout: float = 2.0, renew_interval: float = 1000.0) -> KeyLedger:
        memory = self.broker.connect()
        self.buses.append(memory)
        store = QuotaStore(bus if bus is not None else memory, self.clock)
        ledger = KeyLedger("key", store, clock=self.clock, timeout=timeout, renew_interval=renew_interval)
        self.ledgers.append(ledger)
        return ledger

    @property
    def num_writes(self) -> int:
        """Writes of the key's entry; reading the broker's clock is one write more per gateway."""
        return self.broker.bucket(subjects.QUOTAS_BUCKET).revision - len(self.ledgers)

    async def idle(self) -> None:
        while not all(ledger.is_quiet for ledger in self.ledgers):  # noqa: ASYNC110 - tasks of the ledgers
            await asyncio.sleep(0)

    async def close(self) -> None:
        for ledger in self.ledgers:
            await ledger.close(0.05)


@pytest.fixture
async def gateways() -> AsyncIterator[Gateways]:
    made = Gateways()
    yield made
    await made.close()


def asked(ledger: KeyLedger, quota: Quota, num_tokens: int = 0) -> asyncio.Future[Granted | HttpRefused]:
    decided: asyncio.Future[Granted | HttpRefused] = asyncio.get_running_loop().create_future()
    ledger.ask(quota, num_tokens, decided.set_result)
    assert not decided.done()
    return decided


async def admitted(ledger: KeyLedger, quota: Quota, num_tokens: int = 0) -> Granted:
    answer = await asked(ledger, quota, num_tokens)
    assert isinstance(answer, Granted), answer
    return answer


async def refused(ledger: KeyLedger, quota: Quota, num_tokens: int = 0) -> HttpRefused:
    answer = await asked(ledger, quota, num_tokens)
    assert isinstance(answer, HttpRefused)
    return answer


async def test_all_that_is_asked_in_one_turn_is_one_write(gateways: Gateways) -> None:
    ledger, quota = gateways.add(), Quota(requests_per_minute=150)
    answers = await asyncio.gather(*(asked(ledger, quota) for _ in range(200)))
    assert [isinstance(answer, Granted) for answer in answers] == [True] * 150 + [False] * 50
    assert gateways.num_writes == 1


async def test_what_comes_while_a_write_is_in_flight_goes_out_with_the_next(gateways: Gateways) -> None:
    slow = SlowBus(gateways.broker.connect())
    ledger, quota = gateways.add(bus=slow), Quota(requests_per_minute=1000)
    answers = [asked(ledger, quota)]
    await slow.write_begun.wait()
    answers += [asked(ledger, quota) for _ in range(300)]
    slow.may_write.set()
    assert all(isinstance(answer, Granted) for answer in await asyncio.gather(*answers))
    assert gateways.num_writes == 2


@pytest.mark.parametrize("limit", [1, 37, 100])
async def test_three_gateways_admit_exactly_the_limit_together(gateways: Gateways, limit: int) -> None:
    ledgers = [gateways.add() for _ in range(3)]
    quota = Quota(requests_per_minute=limit, tokens_per_minute=limit * 10)

    async def hammer(ledger: KeyLedger) -> int:
        answers = []
        for _ in range(20):
            answers += await asyncio.gather(*(asked(ledger, quota, 10) for _ in range(5)))
        return sum(isinstance(answer, Granted) for answer in answers)

    counts = await asyncio.gather(*map(hammer, ledgers))
    assert sum(counts) == limit


async def test_a_refusal_writes_nothing_and_is_never_made_of_what_is_stale(gateways: Gateways) -> None:
    one, two = gateways.add(), gateways.add()
    quota = Quota(tokens_per_minute=100)
    granted = await admitted(one, quota, 100)
    assert (await refused(two, quota, 1)).http_error.status == 429
    assert gateways.num_writes == 1
    one.end(granted, 40)
    await gateways.idle()
    await admitted(two, quota, 60)  # it last saw a full window


async def test_what_was_reserved_and_not_used_is_given_back_and_what_was_used_beyond_it_is_charged(
    gateways: Gateways,
) -> None:
    ledger, quota = gateways.add(), Quota(tokens_per_minute=100)
    ledger.end(await admitted(ledger, quota, 80), 30)
    ledger.end(await admitted(ledger, quota, 70), 75)
    assert (await refused(ledger, quota, 1)).http_error.status == 429
    gateways.clock.advance(61)
    await admitted(ledger, quota, 100)


async def test_ending_twice_counts_once(gateways: Gateways) -> None:
    ledger, quota = gateways.add(), Quota(tokens_per_minute=100, concurrency=2)
    granted = await admitted(ledger, quota, 100)
    ledger.end(granted, 60)
    ledger.end(granted, 0)
    assert (await refused(ledger, quota, 50)).http_error.status == 429
    await admitted(ledger, quota, 40)
    await admitted(ledger, quota, 0)
    assert (await refused(ledger, quota, 0)).http_error.status == 429


async def test_concurrency_is_counted_across_gateways_and_free_again_at_the_end(gateways: Gateways) -> None:
    one, two = gateways.add(), gateways.add()
    quota = Quota(concurrency=3)
    granted = [await admitted(one, quota), await admitted(two, quota), await admitted(two, quota)]
    for ledger in (one, two):
        assert (await refused(ledger, quota)).http_error.status == 429
    two.end(granted[1], 0)
    await gateways.idle()
    await admitted(one, quota)
    assert (await refused(two, quota)).http_error.status == 429


async def test_a_gateway_that_stops_gives_back_what_it_holds_at_once(gateways: Gateways) -> None:
    one, two = gateways.add(), gateways.add()
    quota = Quota(concurrency=1)
    granted = await admitted(one, quota)
    await one.close(1.0)
    one.end(granted, 0)
    await admitted(two, quota)


async def test_a_gateway_that_died_is_forgotten_after_its_lease_and_one_that_lives_is_not(
    gateways: Gateways,
) -> None:
    dead, alive, other = gateways.add(), gateways.add(renew_interval=0.001), gateways.add()
    quota = Quota(concurrency=2)
    await admitted(dead, quota)
    await admitted(alive, quota)
    gateways.clock.advance(LEASE_SECONDS - 1)
    before = gateways.num_writes
    while gateways.num_writes == before:  # noqa: ASYNC110 - a timer of the ledger, seen by what it writes
        await asyncio.sleep(0.001)
    assert (await refused(other, quota)).http_error.status == 429
    gateways.clock.advance(2)
    await admitted(other, quota)
    assert (await refused(other, quota)).http_error.status == 429


async def test_a_silent_bus_refuses_everyone_with_503_within_the_timeout_and_lets_nobody_through(
    gateways: Gateways,
) -> None:
    slow = SlowBus(gateways.broker.connect())
    ledger, quota = gateways.add(bus=slow, timeout=0.03), Quota(requests_per_minute=10, concurrency=5)
    answers = [asked(ledger, quota)]
    await slow.write_begun.wait()
    answers += [asked(ledger, quota) for _ in range(3)]
    for answer in await asyncio.gather(*answers):
        assert isinstance(answer, HttpRefused)
        assert (answer.http_error.status, answer.http_error.code) == (503, "quota_unavailable")
        assert answer.http_error.retryable
    slow.may_write.set()
    assert isinstance(await asked(ledger, quota), Granted)


async def test_a_bus_that_is_gone_refuses_with_503(gateways: Gateways) -> None:
    ledger, quota = gateways.add(), Quota(requests_per_minute=10)
    gateways.buses[0].disconnect()
    assert (await refused(ledger, quota)).http_error.status == 503
    gateways.buses[0].reconnect()
    await admitted(ledger, quota)


async def test_a_refund_whose_write_was_not_answered_is_never_made_twice(gateways: Gateways) -> None:
    deaf = DeafBus(gateways.broker.connect())
    ledger, quota = gateways.add(bus=deaf), Quota(tokens_per_minute=100)
    one, two = await admitted(ledger, quota, 50), await admitted(ledger, quota, 50)
    deaf.num_deaf = 1  # stored, but nobody hears of it
    ledger.end(one, 0)
    await gateways.idle()
    await admitted(ledger, quota, 50)
    assert (await refused(ledger, quota, 1)).http_error.status == 429
    ledger.end(two, 0)
    await admitted(ledger, quota, 50)


async def test_a_count_that_may_have_been_stored_is_said_again(gateways: Gateways) -> None:
    deaf = DeafBus(gateways.broker.connect())
    ledger, other = gateways.add(bus=deaf, renew_interval=0.001), gateways.add()
    quota = Quota(concurrency=1)
    deaf.num_deaf = 2
    assert (await refused(ledger, quota)).http_error.status == 503
    # A timer of the ledger repairs it; that is seen by asking alone.
    while isinstance(await asked(other, quota), HttpRefused):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_an_entry_that_cannot_be_read_is_replaced(gateways: Gateways) -> None:
    ledger, quota = gateways.add(), Quota(requests_per_minute=1)
    bucket = await gateways.buses[0].key_value(subjects.QUOTAS_BUCKET)
    await bucket.put(subjects.quota_entry("key"), b"\xc1 not ours")
    await admitted(ledger, quota)
    assert (await refused(ledger, quota)).http_error.status == 429


async def test_one_callback_that_fails_costs_nobody_else_the_answer(gateways: Gateways) -> None:
    ledger, quota = gateways.add(), Quota(requests_per_minute=10)
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fail(_: object) -> None:
        raise RuntimeError("bug")

    ledger.ask(quota, 0, fail)
    await admitted(ledger, quota)
    assert len(failures) == 1


class SlowBus:
    """A bus whose buckets write only once they may."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus
        self.write_begun, self.may_write = asyncio.Event(), asyncio.Event()

    async def key_value(self, bucket: str, **options: Any) -> Wrapped:
        return Wrapped(await self._bus.key_value(bucket, **options), self._write)

    async def _write(self, store: Callable[[], Any]) -> int:
        self.write_begun.set()
        await self.may_write.wait()
        revision: int = await store()
        return revision


class DeafBus(SlowBus):
    """A bus that stores what it is given, and then says so many times that it could not."""

    num_deaf = 0

    async def _write(self, store: Callable[[], Any]) -> int:
        revision: int = await store()
        if self.num_deaf:
            self.num_deaf -= 1
            raise BusUnavailable("no stream confirmed a message")
        return revision


class Wrapped:
    """A bucket whose conditional writes go through `write`."""

    def __init__(self, values: KeyValue, write: Callable[[Callable[[], Any]], Any]) -> None:
        self._values, self._write = values, write

    async def get(self, key: str) -> Entry | None:
        return await self._values.get(key)

    async def put(self, key: str, value: bytes) -> int:
        return await self._values.put(key, value)

    async def create(self, key: str, value: bytes) -> int:
        revision: int = await self._write(lambda: self._values.create(key, value))
        return revision

    async def update(self, key: str, value: bytes, revision: int) -> int:
        stored: int = await self._write(lambda: self._values.update(key, value, revision))
        return stored
