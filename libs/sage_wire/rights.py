"""What each role may publish and subscribe to on the bus; everything else is denied. Pure.

Computed from the channels and the stores, so that a new subject has its rights where it is written down. No actor may
create a consumer: that is a right to have the server publish on any subject. `sage nats provision` creates them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sage_wire import subjects
from sage_wire.channels import CHANNELS, RECEIVER_PARAMETER, SENDER_PARAMETER, Channel
from sage_wire.roles import ACTOR_ROLES, Role
from sage_wire.stores import BUCKETS, QUEUE_CONSUMER, QUEUES, streams_of

__all__ = ["READER_POOL", "USER_INFO", "Rights", "covers", "rights"]

USER_INFO: Final = "$SYS.REQ.USER.INFO"
"""Where a client asks the server for its own rights."""
READER_POOL: Final = "all-MiniLM-L6-v2"
"""Where the extractive reader has sentences embedded: the one pool that an llm-worker may submit to."""
MAX_RESPONSES: Final = 1
RESPONSE_SECONDS: Final = 5

_PARAMETER = re.compile(r"\{\w+\}")
_FREE_END = re.compile(r"(?:\.\*){2,}$")


@dataclass(frozen=True, slots=True)
class Rights:
    """Subjects that one role may use, as NATS patterns in order.

    `max_responses` is how often it may answer a message on the reply subject that came with it, within
    `response_seconds`; 0: not at all.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    max_responses: int = 0
    response_seconds: int = RESPONSE_SECONDS

    def may_publish(self, subject: str) -> bool:
        """Tell whether a message may be published on `subject`."""
        return any(covers(pattern, subject) for pattern in self.publish)

    def may_subscribe(self, subject: str) -> bool:
        """Tell whether `subject`, which may be a pattern, may be subscribed to."""
        return any(covers(pattern, subject) for pattern in self.subscribe)


def rights(role: Role) -> Rights:
    """Return what `role` may do."""
    publish = {USER_INFO} | _published(role) | _stored(role)
    subscribe = {f"{subjects.inbox(role)}.>"} | _subscribed(role)
    answered = [
        channel for channel in CHANNELS if channel.reply is not None and role in channel.receiver.roles
    ]
    is_flooded = any(channel.has_reply_subject and role in channel.receiver.roles for channel in CHANNELS)
    if is_flooded:
        # The server remembers every reply subject that it delivered to who answers by `allow_responses`, and searches
        # all of them once there are thousands. Who gets that many is allowed the inboxes of those who may ask instead.
        publish |= {f"{subjects.inbox(asker)}.>" for channel in answered for asker in channel.sender.roles}
    return Rights(
        publish=_tidied(publish),
        subscribe=_tidied(subscribe),
        max_responses=MAX_RESPONSES if answered and not is_flooded else 0,
    )


def covers(wide: str, narrow: str) -> bool:
    """Tell whether every subject that the pattern `narrow` matches is matched by the pattern `wide`."""
    allowed, wanted = wide.split("."), narrow.split(".")
    for index, part in enumerate(allowed):
        if part == ">":
            return len(wanted) > index
        if index >= len(wanted) or wanted[index] == ">":
            return False
        if part not in ("*", wanted[index]):
            return False
    return len(wanted) == len(allowed)


def _published(role: Role) -> set[str]:
    found = {
        _pattern(channel, SENDER_PARAMETER, role) for channel in CHANNELS if role in channel.sender.roles
    }
    if role is Role.LLM_WORKER:
        found |= {subjects.pool_submit(READER_POOL), subjects.pool_cancel(READER_POOL)}
    if role in ACTOR_ROLES or role is Role.OPERATOR:
        # A message to itself is how a connection proves that the server still carries its messages.
        found.add(f"{subjects.inbox(role)}.>")
    return found


def _subscribed(role: Role) -> set[str]:
    heard = [channel for channel in CHANNELS if role in channel.receiver.roles and channel.stream is None]
    # Who receives from several kinds listens with one subscription, which `*` does not cover.
    found = {_FREE_END.sub(".>", _pattern(channel, RECEIVER_PARAMETER, role)) for channel in heard}
    return found | {
        f"{subjects.bucket_changes(bucket.name)}.>" for bucket in BUCKETS if role in bucket.followers
    }


def _pattern(channel: Channel, own_parameter: str, role: Role) -> str:
    return _PARAMETER.sub("*", channel.address.replace(own_parameter, role))


def _stored(role: Role) -> set[str]:
    """Return the subjects of JetStream's interface that `role` needs, and those on which it stores."""
    if role is Role.PROVISIONER:
        return _provisioned()
    found = {f"$JS.API.STREAM.INFO.{stream}" for stream in streams_of(role)}
    for bucket in BUCKETS:
        stream = subjects.bucket_stream(bucket.name)
        if role in bucket.readers | bucket.followers:
            found |= {
                f"$JS.API.STREAM.MSG.GET.{stream}",
                f"$JS.API.DIRECT.GET.{stream}",
                f"$JS.API.DIRECT.GET.{stream}.>",
            }
        if role in bucket.writers:
            found |= {f"{subjects.bucket_keys(bucket.name)}.>"}
    for queue in QUEUES:
        dead = subjects.dead_stream(queue.stream)
        if role in queue.submitters:
            found |= {queue.subject}
        if role in queue.pullers:
            found |= {
                f"$JS.API.CONSUMER.INFO.{queue.stream}.{QUEUE_CONSUMER}",
                f"$JS.API.CONSUMER.MSG.NEXT.{queue.stream}.{QUEUE_CONSUMER}",
                f"$JS.ACK.{queue.stream}.{QUEUE_CONSUMER}.>",
                subjects.dead_letters(queue.stream),
            }
        if role in queue.listers:
            found |= {f"$JS.API.DIRECT.GET.{dead}"}
    return found


def _provisioned() -> set[str]:
    streams = [subjects.bucket_stream(bucket.name) for bucket in BUCKETS]
    consumers = [f"{queue.stream}.{QUEUE_CONSUMER}" for queue in QUEUES]
    for queue in QUEUES:
        streams += [queue.stream, subjects.dead_stream(queue.stream)]
    return {
        f"$JS.API.STREAM.{verb}.{stream}" for stream in streams for verb in ("INFO", "CREATE", "UPDATE")
    } | {f"$JS.API.CONSUMER.{verb}.{consumer}" for consumer in consumers for verb in ("INFO", "CREATE")}


def _tidied(patterns: set[str]) -> tuple[str, ...]:
    return tuple(
        sorted(
            pattern
            for pattern in patterns
            if not any(other != pattern and covers(other, pattern) for other in patterns)
        )
    )
