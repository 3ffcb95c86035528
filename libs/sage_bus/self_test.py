"""What a process checks right after it has connected: its rights on the bus, and that what it needs was made.

A denied publish raises nothing anywhere: without this, a missing right would show as silence, hours later.
"""

from __future__ import annotations

import msgspec
import structlog

from sage_bus.connection import Connection
from sage_bus.denials import RIGHTS_REMEDY
from sage_bus.jetstream import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, api
from sage_core import BusError, BusUnavailable, ConfigurationError, DeadlineExceeded, Unavailable
from sage_wire.rights import USER_INFO, Rights, covers, rights
from sage_wire.roles import Role
from sage_wire.stores import QUEUE_CONSUMER, QUEUES, streams_of

__all__ = ["check_provisioned", "check_rights"]

log = structlog.get_logger("sage_bus")

_ANSWER_SECONDS = 5.0


class _Patterns(msgspec.Struct, frozen=True):
    allow: list[str] | None = None


class _Responses(msgspec.Struct, frozen=True):
    max: int = 0


class _Permissions(msgspec.Struct, frozen=True):
    publish: _Patterns | None = None
    subscribe: _Patterns | None = None
    responses: _Responses | None = None


class _User(msgspec.Struct, frozen=True):
    permissions: _Permissions | None = None


class _UserInfo(msgspec.Struct, frozen=True):
    data: _User = _User()


async def check_rights(connection: Connection, role: Role) -> None:
    """Compare what the server allows us with what `role` needs. Raises ConfigurationError naming the first lack."""
    try:
        answer = await connection.ask(USER_INFO.encode("ascii"), b"", timeout=_ANSWER_SECONDS)
        permissions = msgspec.json.decode(answer.payload, type=_UserInfo).data.permissions
    except BusError as error:
        raise ConfigurationError(error.message) from None
    except BusUnavailable:
        raise
    except (Unavailable, DeadlineExceeded, msgspec.MsgspecError) as error:
        log.warning("bus_rights_unknown", role=role, reason=str(error))
        return
    if permissions is not None:
        lack = _lack(permissions, rights(role))
        if lack is not None:
            raise ConfigurationError(f"role {role} may not {lack}; {RIGHTS_REMEDY}")


def _lack(found: _Permissions, needed: Rights) -> str | None:
    """Say what `needed` has and `found` has not; no list is no limit."""
    for verb, given, patterns in (
        ("publish on", found.publish, needed.publish),
        ("subscribe to", found.subscribe, needed.subscribe),
    ):
        if given is None or given.allow is None:
            continue
        for pattern in patterns:
            if not any(covers(allowed, pattern) for allowed in given.allow):
                return f"{verb} {pattern}"
    is_limited = found.publish is not None and found.publish.allow is not None
    if needed.max_responses and is_limited and found.responses is None:
        return "answer (allow_responses)"
    return None


async def check_provisioned(connection: Connection, role: Role) -> None:
    """Ask for every stream and consumer that `role` uses. Raises ConfigurationError naming the missing one."""
    for name in streams_of(role):
        info = await api(connection, f"STREAM.INFO.{name}")
        if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
            raise ConfigurationError(f"stream {name} is missing; run `sage nats provision`")
    for queue in QUEUES:
        if role in queue.pullers:
            info = await api(connection, f"CONSUMER.INFO.{queue.stream}.{QUEUE_CONSUMER}")
            if info.error is not None and info.error.err_code == CONSUMER_NOT_FOUND:
                raise ConfigurationError(
                    f"consumer {QUEUE_CONSUMER} of stream {queue.stream} is missing; run `sage nats provision`"
                )
