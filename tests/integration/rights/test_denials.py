"""What a role may not do the server denies, whatever its client tries."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import nats as nats_py
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from guarded_cluster import GuardedServer
from sage_bus import BusEvent, NatsBus, Received
from sage_core import BusError
from sage_wire import subjects
from sage_wire.roles import ACTOR_ROLES, Role

pytestmark = pytest.mark.integration

ConnectAs = Callable[[Role], Awaitable[NatsBus]]
WORKERS = [Role.LLM_WORKER, Role.EMBEDDING_WORKER, Role.OPERATOR_WORKER]


@pytest.fixture(autouse=True)
async def provisioned(guarded: GuardedServer) -> None:
    await asyncio.to_thread(guarded.provision)


class Raw:
    """A plain client of a role, without anything that SAGE's own checks would refuse first."""

    def __init__(self, client: Client, denied: list[str]) -> None:
        self.client, self._denied = client, denied

    async def is_denied(self, attempt: Awaitable[object]) -> bool:
        """Tell whether the server denied anything of `attempt`."""
        before = len(self._denied)
        with contextlib.suppress(NatsTimeoutError, NoRespondersError):
            await attempt
        await self.client.flush()
        await asyncio.sleep(
            0.02
        )  # the error line comes before the PONG, but nats-py tells it in another task
        return len(self._denied) > before


@contextlib.asynccontextmanager
async def raw(guarded: GuardedServer, role: Role) -> AsyncIterator[Raw]:
    denied: list[str] = []

    async def note(error: Exception) -> None:
        if "permissions violation" in str(error):
            denied.append(str(error))

    client = await nats_py.connect(
        guarded.url,
        nkeys_seed=str(guarded.folder / f"{role}.nk"),
        inbox_prefix=subjects.inbox(role).encode(),
        error_cb=note,
    )
    try:
        yield Raw(client, denied)
    finally:
        await client.close()


@pytest.mark.parametrize("role", WORKERS)
async def test_a_worker_cannot_submit_as_a_gateway(
    guarded: GuardedServer, connect_as: ConnectAs, role: Role
) -> None:
    scheduler, heard = await connect_as(Role.SCHEDULER), asyncio.Queue[Received]()
    await scheduler.subscribe(subjects.pool_submit("a-model"), heard.put_nowait)
    async with raw(guarded, role) as worker:
        assert await worker.is_denied(worker.client.publish(subjects.pool_submit("a-model"), b"forged"))
    gateway = await connect_as(Role.GATEWAY)
    gateway.publish(subjects.pool_submit("a-model"), b"true")
    async with asyncio.timeout(5):
        assert (await heard.get()).payload == b"true"
    assert heard.empty()


@pytest.mark.parametrize("role", sorted(ACTOR_ROLES - {Role.SCHEDULER}))
async def test_only_a_scheduler_dispatches(guarded: GuardedServer, role: Role) -> None:
    async with raw(guarded, role) as peer:
        assert await peer.is_denied(peer.client.publish(subjects.worker_dispatch("a-worker"), b""))
        assert await peer.is_denied(peer.client.publish(subjects.worker_lead("a-worker"), b""))


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.PROVISIONER])
async def test_nobody_creates_a_consumer_or_a_stream_or_deletes_one(
    guarded: GuardedServer, role: Role
) -> None:
    async with raw(guarded, role) as peer:
        config = {"deliver_subject": subjects.worker_dispatch("a-worker"), "ack_policy": "none"}
        for stream in ("KV_sage_jobs", "SAGE_JOBS"):
            body = json.dumps({"stream_name": stream, "config": config}).encode()
            for call in (
                f"CONSUMER.CREATE.{stream}",
                f"CONSUMER.CREATE.{stream}.mine",
                f"STREAM.DELETE.{stream}",
            ):
                assert await peer.is_denied(peer.client.request(f"$JS.API.{call}", body, timeout=0.1)), call
        assert await peer.is_denied(
            peer.client.request("$JS.API.STREAM.CREATE.MINE", b'{"name": "MINE"}', timeout=0.1)
        )


@pytest.mark.parametrize("role", sorted(Role))
async def test_frames_of_another_role_cannot_be_read_by_any_pattern(
    guarded: GuardedServer, role: Role
) -> None:
    others = {Role.GATEWAY, Role.PLANNER} - {role}
    patterns = [subjects.frames("*", other) for other in others]
    patterns += [subjects.frames(">", other) for other in others]
    patterns += [
        "sage.v1.frames.>",
        "sage.v1.frames.*.*",
        "sage.v1.frames.*.>",
        "sage.v1.>",
        "sage.>",
        "*.>",
        ">",
    ]
    async with raw(guarded, role) as peer:
        for pattern in patterns:
            assert await peer.is_denied(peer.client.subscribe(pattern)), pattern
            assert await peer.is_denied(peer.client.subscribe(pattern, queue="q")), pattern


@pytest.mark.parametrize("role", sorted(Role))
async def test_answers_to_another_role_cannot_be_read(guarded: GuardedServer, role: Role) -> None:
    async with raw(guarded, role) as peer:
        for other in Role:
            if other is not role:
                assert await peer.is_denied(peer.client.subscribe(f"{subjects.inbox(other)}.>")), other


async def test_an_actor_answers_once_where_it_was_asked_and_nowhere_else(
    guarded: GuardedServer, connect_as: ConnectAs
) -> None:
    operator = await connect_as(Role.OPERATOR)
    async with raw(guarded, Role.LLM_WORKER) as worker:
        asked: asyncio.Queue[str] = asyncio.Queue()

        async def note(message: object) -> None:
            await asked.put(message.reply)  # type: ignore[attr-defined]

        await worker.client.subscribe(subjects.actor("worker-1", "ping"), cb=note)
        await worker.client.flush()
        asking = asyncio.create_task(
            operator.request_many(subjects.actor("worker-1", "ping"), b"", timeout=1, max_replies=2)
        )
        reply = await asked.get()
        assert not await worker.is_denied(worker.client.publish(reply, b"first"))
        assert await worker.is_denied(worker.client.publish(reply, b"second"))
        another = reply.rpartition(".")[0] + ".ff"
        assert await worker.is_denied(worker.client.publish(another, b"forged"))
        answers = await asking
    assert [answer.payload for answer in answers] == [b"first"]


async def test_a_denial_is_an_error_where_one_waits_and_an_event_and_a_count_where_none_does(
    connect_as: ConnectAs,
) -> None:
    bus, told = await connect_as(Role.EMBEDDING_WORKER), asyncio.Queue[tuple[BusEvent, str]]()
    bus.on_event(lambda event, detail: told.put_nowait((event, detail)))
    with pytest.raises(BusError, match=r"role embedding-worker may not subscribe to sage\.v1\.announce\.>"):
        await bus.subscribe(subjects.ALL_ANNOUNCEMENTS, lambda _: None)
    with pytest.raises(BusError, match=r"may not publish on .*sage nats config --users"):
        await bus.request(subjects.RECEIPTS_FIND, b"", timeout=10)
    bus.publish(subjects.JOBS_SUBMIT, b"")
    async with asyncio.timeout(5):
        events = [await told.get() for _ in range(3)]
    assert events[-1] == (BusEvent.PERMISSION_DENIED, "publish sagejobs.v1.submit")
    assert bus.statistics.num_permission_errors == 3
    await bus.round_trip()


async def test_what_a_reader_of_a_stream_has_the_server_deliver_elsewhere_is_refused(
    guarded: GuardedServer, connect_as: ConnectAs
) -> None:
    """The server delivers what is read to whatever reply subject the reader names, past the reader's rights."""
    worker, heard = await connect_as(Role.LLM_WORKER), asyncio.Queue[bytes]()
    target = subjects.worker_dispatch("worker-1")
    await worker.subscribe(target, lambda message: heard.put_nowait(message.payload))
    async with raw(guarded, Role.GATEWAY) as gateway:
        plain = asyncio.Queue[bytes]()
        async with raw(guarded, Role.OPERATOR_WORKER) as witness:

            async def note(message: object) -> None:
                await plain.put(message.data)  # type: ignore[attr-defined]

            await witness.client.subscribe(target, cb=note)
            await witness.client.flush()
            key = f"{subjects.bucket_keys(subjects.QUOTAS_BUCKET)}.forged"
            await gateway.client.request(key, b"forged", timeout=1)
            question = json.dumps({"last_by_subj": key}).encode()
            await gateway.client.publish("$JS.API.DIRECT.GET.KV_sage_quotas", question, reply=target)
            async with asyncio.timeout(5):
                assert await plain.get() == b"forged"  # so it was delivered
    scheduler = await connect_as(Role.SCHEDULER)
    scheduler.publish(target, b"true")
    async with asyncio.timeout(5):
        assert await heard.get() == b"true"
    assert heard.empty()
    assert worker.statistics.num_from_streams == 1
