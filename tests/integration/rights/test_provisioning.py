"""`sage nats provision`: makes what is missing, changes what differs, keeps what is stored, and says which."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from guarded_cluster import GuardedServer
from sage_bus import NatsBus
from sage_cli.app import run
from sage_core import ConfigurationError
from sage_wire import subjects
from sage_wire.roles import Role
from sage_wire.stores import BUCKETS, JOBS, QUOTAS

pytestmark = pytest.mark.integration

ConnectAs = Callable[[Role], Awaitable[NatsBus]]
ALL = {subjects.bucket_stream(bucket.name) for bucket in BUCKETS} | {
    "SAGE_JOBS", "SAGE_JOBS_DEAD", "SAGE_JOBS/workers"
}  # fmt: skip


@pytest.fixture
def told(
    guarded: GuardedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, list[str]]]:
    """Runs the command with further settings; returns what it printed."""

    def provision(**settings: str) -> dict[str, list[str]]:
        monkeypatch.delenv("SAGE_CONFIG", raising=False)
        for name, value in (guarded.environment(Role.PROVISIONER) | settings).items():
            monkeypatch.setenv(name, value)
        assert run(["nats", "provision", "--json"]) == 0
        found: dict[str, list[str]] = json.loads(capsys.readouterr().out)
        return found

    return provision


def test_the_first_run_creates_everything_and_the_second_nothing(
    guarded: GuardedServer, told: Callable[..., dict[str, list[str]]]
) -> None:
    first, second = told(), told()
    assert (first["changed"], set(first["created"]), first["updated"]) == (True, ALL, [])
    assert (second["changed"], set(second["unchanged"]), second["created"], second["updated"]) == (
        False, ALL, [], []
    )  # fmt: skip
    assert guarded.violations == []


def test_a_setting_that_changed_changes_what_depends_on_it_alone(
    told: Callable[..., dict[str, list[str]]],
) -> None:
    told()
    smaller = {"SAGE_GATEWAY__RESPONSES_BYTES": "32MiB"}
    longer = {"SAGE_PLANNER__JOB_ACK_WAIT": "45s"}
    assert told(**smaller)["updated"] == ["KV_sage_responses"]
    assert told(**smaller, **longer)["updated"] == ["SAGE_JOBS/workers"]
    assert told(**smaller, **longer)["changed"] is False


async def test_what_actors_made_themselves_is_taken_over_with_what_it_holds(anybody: NatsBus) -> None:
    queue = await anybody.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT)
    bucket = await anybody.key_value(JOBS.name, ttl=JOBS.ttl)
    await queue.submit("job-1", b"job")
    await bucket.create("job-1", b"queued")
    done = await anybody.provision(responses_bytes=2**20, job_ack_wait=30.0)
    assert {"SAGE_JOBS", "SAGE_JOBS_DEAD", "SAGE_JOBS/workers", "KV_sage_jobs"} == set(done.unchanged)
    assert (await bucket.list())["job-1"].value == b"queued"
    job = await anext(queue.pull(1))
    assert job.payload == b"job"


async def test_what_cannot_be_changed_in_place_is_named_and_left_alone(anybody: NatsBus) -> None:
    await anybody.key_value(QUOTAS.name, ttl=QUOTAS.ttl, is_durable=False)  # in memory
    with pytest.raises(ConfigurationError, match=r"KV_sage_quotas differs in .*storage"):
        await anybody.provision(responses_bytes=2**20, job_ack_wait=30.0)


async def test_all_that_was_provisioned_outlives_the_server(
    guarded: GuardedServer, connect_as: ConnectAs
) -> None:
    await asyncio.to_thread(guarded.provision)
    gateway = await connect_as(Role.GATEWAY)
    guarded.server.kill()
    guarded.server.start()
    for role in (Role.GATEWAY, Role.PLANNER, Role.SCHEDULER):
        bus = await connect_as(role)
        await bus.round_trip()
    quotas = await gateway.key_value(QUOTAS.name, ttl=QUOTAS.ttl, is_durable=QUOTAS.is_durable)
    assert await quotas.create("key.a", b"state") > 0
    lease = await bus.acquire_lease(subjects.pool_lease("a-model"), "scheduler-1", ttl=5)
    await lease.renew()
    await lease.release()
    assert guarded.violations == []


async def test_a_planner_with_another_ack_wait_than_was_provisioned_is_told(
    guarded: GuardedServer, connect_as: ConnectAs
) -> None:
    await asyncio.to_thread(guarded.provision)
    planner = await connect_as(Role.PLANNER)
    queue = await planner.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT, ack_wait=7.0)
    with pytest.raises(ConfigurationError, match=r"ack_wait = .*sage nats provision"):
        await asyncio.wait_for(anext(queue.pull(1)), 10)


async def test_jobs_pass_between_roles_that_may_create_nothing(
    guarded: GuardedServer, connect_as: ConnectAs
) -> None:
    await asyncio.to_thread(guarded.provision)
    operator, planner = await connect_as(Role.OPERATOR), await connect_as(Role.PLANNER)
    submitting = await operator.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT)
    pulling = await planner.job_queue(subjects.JOBS_STREAM, subjects.JOBS_SUBMIT, ack_wait=30.0)
    states = await operator.key_value(JOBS.name, ttl=JOBS.ttl)
    watch = states.watch()
    first = asyncio.create_task(anext(watch))
    jobs = pulling.pull(4)
    for number in range(8):
        await submitting.submit(f"job-{number}", b"work")
    for number in range(8):
        job = await asyncio.wait_for(anext(jobs), 10)
        if number == 3:
            await job.in_progress()
        if number == 7:
            await job.dead_letter("it is cursed")
        else:
            await job.ack()
    await (await planner.key_value(JOBS.name, ttl=JOBS.ttl)).create("job-0", b"done")
    assert (await asyncio.wait_for(first, 10)).value == b"done"
    assert [letter.reason for letter in await submitting.dead_letters()] == ["it is cursed"]
    await jobs.aclose()
    await watch.aclose()
    assert guarded.violations == []
