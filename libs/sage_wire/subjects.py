"""Every NATS subject, spelled once. Names from outside (model, tenant, user) enter only as hashes.

Requests (core NATS; lost when nobody listens):

    sage.v1.pool.<pool>.submit             requests for a pool; told to the scheduler that leads it
    sage.v1.pool.<pool>.cancel             cancel by request id; told to the same
    sage.v1.pool.<pool>.report             what a worker did with its dispatches; told to the same
    sage.v1.worker.<worker>.dispatch       requests for one worker
    sage.v1.worker.<worker>.cancel         cancel by request id
    sage.v1.worker.<worker>.lead           which scheduler leads a pool of the worker now
    sage.v1.frames.<role>.<consumer>       deltas and answers for one consumer (a gateway, a planner, a command)
    sage.v1.actor.<actor>.<verb>           asked of one actor (ping, drain, inspect …)
    sage.v1.every.<verb>                   asked of every actor (discover, spans …)
    sage.v1.announce.<kind>.<actor>        presence
    sage.v1.receipts.find                  asked of every scheduler
    sage.v1.requests.cancel                asked of every gateway: who serves the request ends it and answers
    sage.v1.responses.cancel               asked of every gateway: who writes the response ends it and answers

Jobs (JetStream; kept until done), no prefix shared with requests:

    sagejobs.v1.submit                     work queue of durable pipeline jobs
    sagedead.v1.<stream>                   what a work queue gave up
    sagekv.v1.<bucket>.<key>               every stored change of a bucket, republished by the server
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from typing import Final

from sage_core import BusError

__all__ = [
    "ALL_ANNOUNCEMENTS",
    "ALL_CANCELS",
    "ALL_REPORTS",
    "ALL_SUBMITS",
    "JOBS_BUCKET",
    "JOBS_STREAM",
    "JOBS_SUBMIT",
    "LEASES_BUCKET",
    "MAX_SUBJECT_BYTES",
    "QUOTAS_BUCKET",
    "RECEIPTS_FIND",
    "REQUESTS_CANCEL",
    "RESPONSES_BUCKET",
    "RESPONSES_CANCEL",
    "actor",
    "announce",
    "bucket_changes",
    "bucket_keys",
    "bucket_stream",
    "check_subject",
    "dead_letters",
    "dead_stream",
    "every",
    "frames",
    "inbox",
    "is_pool_lease",
    "pool_cancel",
    "pool_lease",
    "pool_report",
    "pool_submit",
    "pool_token",
    "quota_clock",
    "quota_entry",
    "response_entry",
    "worker_cancel",
    "worker_dispatch",
    "worker_lead",
]

MAX_SUBJECT_BYTES: Final = 255
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_PATTERN = re.compile(r"(?:[A-Za-z0-9_-]+|\*)(?:\.(?:[A-Za-z0-9_-]+|\*))*(?:\.>)?")

ALL_ANNOUNCEMENTS: Final = "sage.v1.announce.>"
ALL_SUBMITS: Final = "sage.v1.pool.*.submit"
ALL_CANCELS: Final = "sage.v1.pool.*.cancel"
ALL_REPORTS: Final = "sage.v1.pool.*.report"
RECEIPTS_FIND: Final = "sage.v1.receipts.find"
JOBS_SUBMIT: Final = "sagejobs.v1.submit"
JOBS_STREAM: Final = "SAGE_JOBS"
JOBS_BUCKET: Final = "sage_jobs"
LEASES_BUCKET: Final = "sage_leases"
QUOTAS_BUCKET: Final = "sage_quotas"
RESPONSES_BUCKET: Final = "sage_responses"
REQUESTS_CANCEL: Final = "sage.v1.requests.cancel"
RESPONSES_CANCEL: Final = "sage.v1.responses.cancel"
_POOL_LEASE: Final = "pool."


@lru_cache(maxsize=4096)
def pool_token(name: str) -> str:
    """Return the token that stands for `name` (a model, pipeline or operator type) in subjects.

    16 characters of base32(sha256(name)), lower case: 80 bits, so names never collide by accident. The latest names
    are remembered: hashing took 6 % of a worker's time.
    """
    return (
        base64.b32encode(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())[:16].decode().lower()
    )


def pool_submit(pool: str) -> str:
    """Where requests for the pool named `pool` are submitted."""
    return f"sage.v1.pool.{pool_token(pool)}.submit"


def pool_cancel(pool: str) -> str:
    """Where a cancel for a request in the pool named `pool` is told."""
    return f"sage.v1.pool.{pool_token(pool)}.cancel"


def pool_report(pool: str) -> str:
    """Where workers tell the scheduler of the pool named `pool` what became of their dispatches."""
    return f"sage.v1.pool.{pool_token(pool)}.report"


def pool_lease(pool: str) -> str:
    """Name the lease of whoever leads the pool named `pool`."""
    return f"{_POOL_LEASE}{pool_token(pool)}"


def is_pool_lease(key: str) -> bool:
    """True where a key of `LEASES_BUCKET` is the lease of a pool."""
    return key.startswith(_POOL_LEASE)


def quota_entry(key_name: str) -> str:
    """Where in `QUOTAS_BUCKET` the state of the API key named `key_name` is."""
    return f"key.{pool_token(key_name)}"


def quota_clock(gateway_id: str) -> str:
    """Where in `QUOTAS_BUCKET` a gateway reads the broker's clock."""
    return f"clock.{gateway_id}"


def response_entry(tenant: str, response_id: str) -> str:
    """Where in `RESPONSES_BUCKET` a response of `tenant` is; another tenant's key is another one."""
    digest = hashlib.sha256(f"{tenant}\0{response_id}".encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest)[:32].decode().lower()


def worker_dispatch(worker_id: str) -> str:
    """Where a scheduler tells a worker to start requests."""
    return f"sage.v1.worker.{worker_id}.dispatch"


def worker_cancel(worker_id: str) -> str:
    """Where a worker is told to stop a request."""
    return f"sage.v1.worker.{worker_id}.cancel"


def worker_lead(worker_id: str) -> str:
    """Where a worker is told which scheduler leads one of its pools."""
    return f"sage.v1.worker.{worker_id}.lead"


def frames(consumer_id: str, role: str = "operator") -> str:
    """Where a consumer receives the frames of all its requests. By role, so that one role cannot read another's."""
    return f"sage.v1.frames.{role}.{consumer_id}"


def actor(actor_id: str, verb: str) -> str:
    """Where one actor is asked `verb`."""
    return f"sage.v1.actor.{actor_id}.{verb}"


def every(verb: str) -> str:
    """Where every actor is asked `verb`; each answers for itself."""
    return f"sage.v1.every.{verb}"


def announce(kind: str, actor_id: str) -> str:
    """Where an actor of `kind` announces its presence."""
    return f"sage.v1.announce.{kind}.{actor_id}"


def inbox(role: str) -> str:
    """Prefix of the subjects on which processes of `role` are answered: `<prefix>.<process>.<token>`."""
    return f"_INBOX_{role}"


def dead_letters(stream: str) -> str:
    """Where the jobs that the work queue `stream` gave up are stored."""
    return f"sagedead.v1.{stream}"


def dead_stream(stream: str) -> str:
    """Name the stream of `dead_letters(stream)`."""
    return f"{stream}_DEAD"


def bucket_stream(bucket: str) -> str:
    """Name the stream behind `bucket`."""
    return f"KV_{bucket}"


def bucket_keys(bucket: str) -> str:
    """Prefix of the subjects on which the keys of `bucket` are written."""
    return f"$KV.{bucket}"


def bucket_changes(bucket: str) -> str:
    """Prefix of the subjects on which the server republishes every stored change of `bucket`."""
    return f"sagekv.v1.{bucket}"


def check_subject(subject: str, *, is_pattern: bool = False) -> str:
    """Return `subject` unchanged, or raise BusError if NATS or our alphabet would not accept it.

    A subject over 4 KiB, or one with a space, closes the whole client connection; so nothing is sent unchecked.
    """
    if len(subject) > MAX_SUBJECT_BYTES:
        raise BusError(f"subject has {len(subject)} characters; at most {MAX_SUBJECT_BYTES} are allowed")
    if (_PATTERN if is_pattern else _SUBJECT).fullmatch(subject) is None:
        raise BusError(f"subject {subject!r} is outside the alphabet [A-Za-z0-9_-] with dots between tokens")
    return subject
