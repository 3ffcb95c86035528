"""Makes, ahead of the actors, every stream, bucket and consumer that they use; for a server on which they may not.

Nothing is ever deleted: what cannot be changed in place is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sage_bus.connection import Connection
from sage_bus.jetstream import (
    CONSUMER_NOT_FOUND,
    STREAM_NOT_FOUND,
    ApiAnswer,
    api,
    create_consumer,
    is_same,
)
from sage_bus.stream_plan import (
    ConsumerPlan,
    StreamPlan,
    bucket_plan,
    consumer_plan,
    dead_letters_plan,
    queue_plan,
)
from sage_core import ConfigurationError
from sage_wire.stores import BUCKETS, QUEUES, RESPONSES

__all__ = ["Provisioned", "provision"]

MAX_QUEUED: Final = 100_000
_NO_ROOM: Final = 10047


@dataclass(slots=True)
class Provisioned:
    """The names of what was created, changed and found as it should be."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    @property
    def is_changed(self) -> bool:
        """True where anything was created or changed."""
        return bool(self.created or self.updated)


async def provision(connection: Connection, *, responses_bytes: int, job_ack_wait: float) -> Provisioned:
    """Create or change what SAGE keeps on the server. Idempotent.

    `responses_bytes` and `job_ack_wait` are the gateway's and the planner's settings of these names. Raises
    ConfigurationError naming what the server refuses, BusUnavailable where it does not answer.
    """
    done = Provisioned()
    for plan in _streams(responses_bytes):
        await _provide_stream(connection, plan, done)
    for queue in QUEUES:
        await _provide_consumer(connection, consumer_plan(queue.stream, job_ack_wait), done)
    return done


def _streams(responses_bytes: int) -> list[StreamPlan]:
    plans = []
    for bucket in BUCKETS:
        max_bytes = responses_bytes if bucket is RESPONSES else None
        plan = bucket_plan(bucket.name, bucket.ttl, max_bytes=max_bytes)
        if not bucket.is_durable:
            # In a file all the same, though not synced with each write: a stream in memory is gone after a restart
            # of the server, and nobody may create it again.
            plan = StreamPlan(plan.name, {**plan.config, "persist_mode": "async"})
        plans.append(plan)
    for queue in QUEUES:
        plans += [queue_plan(queue.stream, queue.subject, MAX_QUEUED), dead_letters_plan(queue.stream)]
    return plans


async def _provide_stream(connection: Connection, plan: StreamPlan, done: Provisioned) -> None:
    info = await api(connection, f"STREAM.INFO.{plan.name}")
    if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
        _checked(
            await api(connection, f"STREAM.CREATE.{plan.name}", {"name": plan.name, **plan.config}), plan.name
        )
        done.created.append(plan.name)
        return
    found = _checked(info, plan.name)
    if all(is_same(found.get(key), wanted) for key, wanted in plan.config.items()):
        done.unchanged.append(plan.name)
        return
    answer = await api(connection, f"STREAM.UPDATE.{plan.name}", {**found, **plan.config})
    if answer.error is not None:
        differing = [key for key in plan.config if not is_same(found.get(key), plan.config[key])]
        raise ConfigurationError(
            f"stream {plan.name} differs in {', '.join(differing)} and cannot be changed in place "
            f"({answer.error.description}); save what it holds, remove it and provision again"
        )
    done.updated.append(plan.name)


async def _provide_consumer(connection: Connection, plan: ConsumerPlan, done: Provisioned) -> None:
    name = f"{plan.stream}/{plan.name}"
    info = await api(connection, f"CONSUMER.INFO.{plan.stream}.{plan.name}")
    is_absent = info.error is not None and info.error.err_code == CONSUMER_NOT_FOUND
    if not is_absent:
        found = _checked(info, name)
        if all(is_same(found.get(key), wanted) for key, wanted in plan.config.items()):
            done.unchanged.append(name)
            return
    _checked(await create_consumer(connection, plan), name)
    (done.created if is_absent else done.updated).append(name)


def _checked(answer: ApiAnswer, name: str) -> Mapping[str, object]:
    if answer.error is not None:
        reason = answer.error.description
        if answer.error.err_code == _NO_ROOM:
            reason += (
                "; raise max_file_store of the server or lower [gateway] responses_bytes, which is set aside"
            )
        raise ConfigurationError(f"{name}: {reason}")
    return answer.config or {}
