"""What the server keeps: every bucket and work queue, and which roles read, follow and write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sage_wire import roles, subjects
from sage_wire.messages import JOB_STATE_SECONDS
from sage_wire.roles import Role

__all__ = [
    "BUCKETS",
    "JOBS",
    "LEASES",
    "QUEUES",
    "QUEUE_CONSUMER",
    "QUOTAS",
    "RESPONSES",
    "Bucket",
    "Queue",
    "streams_of",
]

QUEUE_CONSUMER: Final = "workers"
"""The one consumer of a work queue; its pullers share it."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A key-value bucket. `followers` are told of every change; they read it, too.

    `ttl` is how many seconds a value is kept, None: for ever. One that is not durable may forget its latest values
    with the power, and is faster for it.
    """

    name: str
    readers: frozenset[Role]
    followers: frozenset[Role]
    writers: frozenset[Role]
    ttl: float | None = None
    is_durable: bool = True


@dataclass(frozen=True, slots=True)
class Queue:
    """A work queue with its dead letters: who submits to it, who pulls from it, who lists what was given up."""

    stream: str
    subject: str
    submitters: frozenset[Role]
    pullers: frozenset[Role]
    listers: frozenset[Role]


_GATEWAY: Final = frozenset({Role.GATEWAY})
_SCHEDULER: Final = frozenset({Role.SCHEDULER})
_NOBODY: Final = frozenset[Role]()

LEASES: Final = Bucket(subjects.LEASES_BUCKET, _SCHEDULER, _SCHEDULER, _SCHEDULER)
# A quota that nobody has written for longer than any window or lease has nothing to say any more.
QUOTAS: Final = Bucket(subjects.QUOTAS_BUCKET, _GATEWAY, _NOBODY, _GATEWAY, ttl=300.0, is_durable=False)
RESPONSES: Final = Bucket(subjects.RESPONSES_BUCKET, _GATEWAY, _NOBODY, _GATEWAY)
JOBS: Final = Bucket(
    subjects.JOBS_BUCKET,
    readers=roles.JOB_READER.roles,
    followers=roles.JOB_READER.roles,
    # The operator cancels jobs by their state; a publisher only reads.
    writers=frozenset({Role.PLANNER, Role.OPERATOR}),
    ttl=JOB_STATE_SECONDS,
)
BUCKETS: Final = (LEASES, JOBS, QUOTAS, RESPONSES)

QUEUES: Final = (
    Queue(
        subjects.JOBS_STREAM,
        subjects.JOBS_SUBMIT,
        submitters=roles.SUBMITTER.roles,
        pullers=roles.PLANNER.roles,
        listers=roles.OPERATOR.roles,
    ),
)


def streams_of(role: Role) -> list[str]:
    """Return the names of the streams, buckets' among them, that `role` reads, follows or writes."""
    found = [
        subjects.bucket_stream(bucket.name)
        for bucket in BUCKETS
        if role in bucket.readers | bucket.followers | bucket.writers
    ]
    for queue in QUEUES:
        if role in queue.submitters | queue.pullers:
            found.append(queue.stream)
        if role in queue.pullers | queue.listers:
            found.append(subjects.dead_stream(queue.stream))
    return found
