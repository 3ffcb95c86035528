"""What SAGE's streams and consumers look like: the one description for those who create them and for those who check.

Pure. Durations are in the server's nanoseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sage_core import BadRequest
from sage_wire import subjects
from sage_wire.stores import QUEUE_CONSUMER
from sage_wire.subjects import check_subject

__all__ = ["ConsumerPlan", "StreamPlan", "bucket_plan", "consumer_plan", "dead_letters_plan", "queue_plan"]

NANOSECONDS: Final = 10**9
_MARKER_SECONDS: Final = 60
_DUPLICATE_SECONDS: Final = 120
_DEAD_DAYS: Final = 30
_MAX_DEAD: Final = 100_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A stream with the part of its configuration that SAGE sets."""

    name: str
    config: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ConsumerPlan:
    """A durable consumer with the part of its configuration that SAGE sets."""

    stream: str
    name: str
    config: Mapping[str, object]


def bucket_plan(
    name: str, ttl: float | None = None, *, is_durable: bool = True, max_bytes: int | None = None
) -> StreamPlan:
    """Return the stream of a bucket; see `Bus.key_value`. Raises BadRequest for a name or time that cannot be."""
    if _NAME.fullmatch(name) is None:
        raise BadRequest(f"bucket name is {name!r}; expected 1 to 64 of [A-Za-z0-9_-]")
    if ttl is not None and (not math.isfinite(ttl) or ttl < 1):
        raise BadRequest(f"bucket time to live is {ttl:g} s; at least 1 s is needed")
    keys = f"{subjects.bucket_keys(name)}.>"
    config: dict[str, object] = {
        "subjects": [keys],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "storage": "file" if is_durable else "memory",
        "num_replicas": 1,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        # An expired key leaves a marker, so watchers are told and compare-and-set goes on from its revision.
        "subject_delete_marker_ttl": _MARKER_SECONDS * NANOSECONDS,
        # Every stored change is also published, with its sequence: a watch is a plain subscription that
        # notices gaps. It needs no consumer, hence no right to create one.
        "republish": {"src": keys, "dest": f"{subjects.bucket_changes(name)}.>"},
    }
    if max_bytes is not None:
        config |= {"max_bytes": max_bytes, "discard": "old"}
    if ttl is not None:
        config["max_age"] = int(ttl * NANOSECONDS)
    return StreamPlan(subjects.bucket_stream(name), config)


def queue_plan(stream: str, subject: str, max_queued: int) -> StreamPlan:
    """Return the stream of a work queue; see `Bus.job_queue`. Raises BadRequest, BusError."""
    if _NAME.fullmatch(stream) is None:
        raise BadRequest(f"job stream is {stream!r}; expected 1 to 64 of [A-Za-z0-9_-]")
    if max_queued < 1:
        raise BadRequest(f"max_queued is {max_queued}; expected at least 1")
    return StreamPlan(
        stream,
        {
            "subjects": [check_subject(subject)],
            # Only here does an acknowledgement survive kill -9 of the server: it removes the message.
            "retention": "workqueue",
            "discard": "new",
            "max_msgs": max_queued,
            "storage": "file",
            "num_replicas": 1,
            "duplicate_window": _DUPLICATE_SECONDS * NANOSECONDS,
        },
    )


def dead_letters_plan(stream: str) -> StreamPlan:
    """Return the stream of what the work queue `stream` gave up."""
    return StreamPlan(
        subjects.dead_stream(stream),
        {
            "subjects": [subjects.dead_letters(stream)],
            "discard": "old",
            "max_msgs": _MAX_DEAD,
            "max_age": _DEAD_DAYS * 86400 * NANOSECONDS,
            "storage": "file",
            "num_replicas": 1,
            "allow_direct": True,
            "duplicate_window": _DUPLICATE_SECONDS * NANOSECONDS,
        },
    )


def consumer_plan(stream: str, ack_wait: float) -> ConsumerPlan:
    """Return the consumer that all pullers of the work queue `stream` share. Raises BadRequest."""
    if not (math.isfinite(ack_wait) and ack_wait > 0):
        raise BadRequest(f"ack_wait is {ack_wait:g} s; expected > 0 s")
    return ConsumerPlan(
        stream,
        QUEUE_CONSUMER,
        {
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "ack_wait": int(ack_wait * NANOSECONDS),
            # Never given up by the server: an exhausted message would stay in the stream, invisible for
            # ever. The puller counts deliveries and moves the message to the dead letters instead.
            "max_deliver": -1,
            "max_ack_pending": 10_000,
        },
    )
