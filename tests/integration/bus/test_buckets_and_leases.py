"""What a bus promises of key-value buckets and leases. Every test runs in process and on a real nats-server."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus_doubles import read
from sage_core import (
    BadRequest,
    Conflict,
    new_id,
)

# Key-value


async def test_key_value_reads_its_own_writes_with_growing_revisions(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    assert await values.get("absent") is None
    first = await values.put("a.b", b"1")
    second = await values.put("a.b", b"2")
    found = await values.get("a.b")
    assert found is not None
    assert (found.key, found.value, found.revision) == ("a.b", b"2", second)
    assert second > first


async def test_create_wins_once_and_again_after_a_delete(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    first = await values.create("key", b"1")
    with pytest.raises(Conflict):
        await values.create("key", b"2")
    await values.delete("key")
    await values.delete("key")
    assert await values.get("key") is None
    assert await values.create("key", b"3") > first


async def test_update_needs_the_current_revision(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    first = await values.put("key", b"1")
    second = await values.update("key", b"2", first)
    with pytest.raises(Conflict):
        await values.update("key", b"3", first)
    found = await values.get("key")
    assert found is not None
    assert (found.value, found.revision) == (b"2", second)


async def test_of_many_concurrent_updates_one_wins(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    revision = await values.put("key", b"0")
    outcomes = await asyncio.gather(
        *(values.update("key", str(number).encode(), revision) for number in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19


async def test_list_returns_every_live_entry_also_of_a_large_bucket(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    await asyncio.gather(*(values.put(f"key.{number}", b"x") for number in range(1500)))
    await values.delete("key.3")
    entries = await values.list()
    assert len(entries) == 1499
    assert "key.3" not in entries
    assert entries["key.7"].value == b"x"


async def test_watch_yields_what_is_there_then_every_change(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = f"b{new_id()}"
    values, others = await bus.key_value(name), await other.key_value(name)
    await values.put("a", b"1")
    await values.put("b", b"1")
    await values.delete("b")
    watch = values.watch()
    first = await read(watch)
    assert (first.key, first.value) == ("a", b"1")
    await others.put("c", b"2")
    await others.put("a", b"3")
    await others.delete("c")
    seen = [await read(watch) for _ in range(3)]
    assert [(entry.key, entry.value) for entry in seen] == [("c", b"2"), ("a", b"3"), ("c", None)]
    assert [entry.revision for entry in seen] == sorted(entry.revision for entry in seen)
    await watch.aclose()
    await watch.aclose()


async def test_cancelling_a_read_of_a_watch_loses_nothing(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    watch = values.watch()
    seen = []
    for number in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch.__anext__(), 0.005)
        await values.put("key", str(number).encode())
        seen.append((await read(watch)).value)
    assert seen == [str(number).encode() for number in range(20)]
    await watch.aclose()


async def test_values_of_a_bucket_with_a_time_to_live_expire_and_watchers_are_told(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}", ttl=1)
    watch = values.watch()
    first = await values.put("key", b"1")
    assert (await read(watch)).value == b"1"
    assert (await read(watch)).value is None
    assert await values.get("key") is None
    assert await values.list() == {}
    assert await values.create("key", b"2") > first
    await watch.aclose()


async def test_a_value_expires_after_its_own_time_to_live(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    await values.put("short", b"1", ttl=1.0)
    await values.put("long", b"1", ttl=60.0)
    await values.put("for_ever", b"1")
    watch = values.watch()
    async with asyncio.timeout(10):
        async for entry in watch:
            if entry.value is None:
                break
    await watch.aclose()
    assert entry.key == "short"
    assert sorted(await values.list()) == ["for_ever", "long"]


async def test_a_full_bucket_with_a_size_lets_the_oldest_values_go(cluster):
    bus, name = await cluster.connect(), f"b{new_id()}"
    values = await bus.key_value(name, max_bytes=100_000)
    for number in range(12):
        await values.put(f"key.{number}", bytes(20_000))
    assert await values.get("key.0") is None
    assert await values.get("key.11") is not None
    assert len(await values.list()) in (4, 5)
    larger = await bus.key_value(name, max_bytes=1_000_000)
    for number in range(12):
        await larger.put(f"key.{number}", bytes(20_000))
    assert len(await larger.list()) == 12


async def test_an_entry_tells_when_the_server_stored_it(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}")
    before = time.time()
    await values.put("key", b"1")
    after = time.time()
    found = await values.get("key")
    assert found is not None
    # The server of these tests is on this host, so its clock is ours; it is read to the microsecond.
    assert before - 0.001 <= found.stored_at <= after + 0.001
    assert (await values.list())["key"].stored_at == pytest.approx(found.stored_at, abs=0.001)


async def test_a_bucket_that_is_not_durable_is_a_bucket(cluster):
    values = await (await cluster.connect()).key_value(f"b{new_id()}", ttl=60, is_durable=False)
    first = await values.create("key", b"1")
    second = await values.update("key", b"2", first)
    with pytest.raises(Conflict):
        await values.update("key", b"3", first)
    found = await values.get("key")
    assert found is not None
    assert (found.value, found.revision) == (b"2", second)


# Leases


async def test_a_lease_has_one_holder_and_names_it(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = new_id("lease")
    lease = await bus.acquire_lease(name, "first", ttl=5)
    assert lease.is_held
    with pytest.raises(Conflict, match="first"):
        await other.acquire_lease(name, "second", ttl=5)
    await lease.release()
    await lease.release()
    assert not lease.is_held
    taken = await other.acquire_lease(name, "second", ttl=5)
    assert taken.fence > lease.fence
    with pytest.raises(Conflict):
        await lease.renew()
    await taken.release()


async def test_a_lease_without_renewal_is_lost_and_the_next_fence_is_higher(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = new_id("lease")
    lease = await bus.acquire_lease(name, "first", ttl=1)
    watch = asyncio.create_task(_acquire_soon(other, name))
    taken = await asyncio.wait_for(watch, 5)
    assert not lease.is_held
    assert taken.fence > lease.fence
    with pytest.raises(Conflict):
        await lease.renew()
    await lease.release()
    assert taken.is_held


async def _acquire_soon(bus, name):
    while True:
        try:
            return await bus.acquire_lease(name, "second", ttl=5)
        except Conflict:
            await asyncio.sleep(0.05)


async def test_a_renewed_lease_is_held_past_its_time_to_live_and_keeps_its_fence(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    name = new_id("lease")
    lease = await bus.acquire_lease(name, "first", ttl=1)
    fence = lease.fence
    for _ in range(4):
        await asyncio.sleep(0.4)
        await lease.renew()
    assert lease.is_held
    assert lease.fence == fence
    with pytest.raises(Conflict):
        await other.acquire_lease(name, "second", ttl=1)
    await lease.release()


async def test_a_time_to_live_under_a_second_is_refused(cluster):
    with pytest.raises(BadRequest):
        await (await cluster.connect()).acquire_lease("short", "me", ttl=0.5)
