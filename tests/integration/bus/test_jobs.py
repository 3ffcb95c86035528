"""What a bus promises of durable job queues. Every test runs in process and on a real nats-server."""

from __future__ import annotations

import asyncio

import pytest

from bus_doubles import read
from sage_bus import Bus
from sage_core import (
    BadRequest,
    LimitExceeded,
    Overloaded,
    new_id,
)

# Jobs


async def open_queue(bus: Bus, **options):
    return await bus.job_queue(f"S{new_id()}", f"jobs.{new_id()}", **options)


async def test_a_job_is_delivered_once_and_gone_after_its_ack(cluster):
    queue = await open_queue(await cluster.connect(), ack_wait=0.3)
    await queue.submit("job-1", b"body", {"Tenant": "a"})
    jobs = queue.pull(4)
    job = await read(jobs)
    assert (job.job_id, job.payload, job.num_delivered) == ("job-1", b"body", 1)
    assert job.headers == {"Tenant": "a"}
    await job.ack()
    await job.ack()
    with pytest.raises(TimeoutError):
        await read(jobs, 0.6)
    await jobs.aclose()


async def test_the_same_job_id_is_stored_once(cluster):
    queue = await open_queue(await cluster.connect())
    for _ in range(3):
        await queue.submit("job-1", b"body")
    await queue.submit("job-2", b"body")
    jobs = queue.pull(10)
    assert [(await read(jobs)).job_id for _ in range(2)] == ["job-1", "job-2"]
    with pytest.raises(TimeoutError):
        await read(jobs, 0.1)
    await jobs.aclose()


async def test_a_puller_never_holds_more_than_it_may(cluster):
    queue = await open_queue(await cluster.connect())
    for number in range(10):
        await queue.submit(f"job-{number}", b"")
    jobs = queue.pull(3)
    held = [await read(jobs) for _ in range(3)]
    with pytest.raises(TimeoutError):
        await read(jobs, 0.1)
    await held[0].ack()
    held.append(await read(jobs))
    with pytest.raises(TimeoutError):
        await read(jobs, 0.1)
    await jobs.aclose()


async def test_every_job_is_delivered_to_one_of_two_pullers(cluster):
    bus, other = await cluster.connect(), await cluster.connect()
    stream, subject = f"S{new_id()}", f"jobs.{new_id()}"
    queues = [await bus.job_queue(stream, subject), await other.job_queue(stream, subject)]
    for number in range(60):
        await queues[0].submit(f"job-{number}", b"")
    seen: list[str] = []

    async def work(queue) -> None:
        jobs = queue.pull(2)
        async for job in jobs:
            seen.append(job.job_id)
            await job.ack()

    workers = [asyncio.create_task(work(queue)) for queue in queues]
    async with asyncio.timeout(5):
        while len(seen) < 60:  # noqa: ASYNC110 - two workers fill it
            await asyncio.sleep(0.01)
    for worker in workers:
        worker.cancel()
    assert sorted(seen) == sorted(f"job-{number}" for number in range(60))


async def test_a_job_given_back_comes_again_after_the_delay(cluster):
    queue = await open_queue(await cluster.connect())
    await queue.submit("job-1", b"")
    jobs = queue.pull(1)
    job = await read(jobs)
    with pytest.raises(BadRequest):
        await job.nak(0)
    await job.nak(0.3)
    with pytest.raises(TimeoutError):
        await read(jobs, 0.15)
    assert (await read(jobs)).num_delivered == 2
    await jobs.aclose()


async def test_a_job_without_an_ack_comes_again_unless_progress_is_reported(cluster):
    queue = await open_queue(await cluster.connect(), ack_wait=0.4)
    await queue.submit("job-1", b"")
    jobs = queue.pull(1)
    job = await read(jobs)
    for _ in range(4):
        await asyncio.sleep(0.2)
        await job.in_progress()
    again = await read(jobs)
    assert again.num_delivered == 2
    await again.ack()
    await jobs.aclose()


async def test_a_job_that_nobody_finishes_becomes_a_dead_letter(cluster):
    queue = await open_queue(await cluster.connect(), max_deliver=2)
    await queue.submit("poison", b"body", {"Tenant": "a"})
    await queue.submit("fine", b"")
    jobs = queue.pull(2)
    outcomes = []
    for _ in range(3):
        job = await read(jobs)
        outcomes.append((job.job_id, job.num_delivered))
        if job.job_id == "fine":
            await job.ack()
        else:
            await job.nak(0.01)
    assert sorted(outcomes) == [("fine", 1), ("poison", 1), ("poison", 2)]
    with pytest.raises(TimeoutError):
        await read(jobs, 0.3)
    (dead,) = await queue.dead_letters()
    assert (dead.job_id, dead.payload, dict(dead.headers)) == ("poison", b"body", {"Tenant": "a"})
    assert dead.reason == "delivered 2 times without an ack"
    await jobs.aclose()


async def test_a_dead_letter_keeps_its_reason_and_leaves_the_queue(cluster):
    queue = await open_queue(await cluster.connect(), ack_wait=0.2)
    assert await queue.dead_letters() == []
    await queue.submit("job-1", b"body")
    jobs = queue.pull(1)
    await (await read(jobs)).dead_letter("the pipeline\r\nis gone")
    with pytest.raises(TimeoutError):
        await read(jobs, 0.4)
    (dead,) = await queue.dead_letters()
    assert (dead.job_id, dead.payload, dead.reason) == ("job-1", b"body", "the pipeline is gone")
    await jobs.aclose()


async def test_closing_a_puller_gives_back_what_was_fetched_but_not_yielded(cluster):
    queue = await open_queue(await cluster.connect())
    for number in range(4):
        await queue.submit(f"job-{number}", b"")
    jobs = queue.pull(4)
    held = await read(jobs)
    await jobs.aclose()
    await jobs.aclose()
    with pytest.raises(StopAsyncIteration):
        await jobs.__anext__()
    again = queue.pull(4)
    seen = {(await read(again)).job_id for _ in range(3)}
    assert seen == {f"job-{number}" for number in range(4)} - {held.job_id}
    await again.aclose()


async def test_cancelling_a_read_of_a_puller_loses_no_job(cluster):
    queue = await open_queue(await cluster.connect())
    jobs = queue.pull(2)
    seen = []
    for number in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(jobs.__anext__(), 0.005)
        await queue.submit(f"job-{number}", b"")
        job = await read(jobs)
        seen.append((job.job_id, job.num_delivered))
        await job.ack()
    assert seen == [(f"job-{number}", 1) for number in range(20)]
    await jobs.aclose()


async def test_a_full_job_queue_refuses(cluster):
    queue = await open_queue(await cluster.connect(), max_queued=2)
    await queue.submit("job-1", b"")
    await queue.submit("job-2", b"")
    with pytest.raises(Overloaded):
        await queue.submit("job-3", b"")
    jobs = queue.pull(1)
    await (await read(jobs)).ack()
    await queue.submit("job-3", b"")
    await jobs.aclose()


async def test_a_job_with_an_oversized_body_is_refused(cluster):
    bus = await cluster.connect()
    queue = await open_queue(bus)
    with pytest.raises(LimitExceeded):
        await queue.submit("job-1", bytes(bus.max_payload + 1))
