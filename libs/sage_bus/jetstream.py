"""The few JetStream requests SAGE makes, typed. nats-py's JetStream code is not used: see key_value, job_queue."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from sage_bus.bus import NO_HEADERS
from sage_bus.connection import Connection
from sage_bus.header_block import parse_headers
from sage_bus.stream_plan import ConsumerPlan, StreamPlan
from sage_core import BusUnavailable, ConfigurationError, DeadlineExceeded, Unavailable

__all__ = [
    "ApiAnswer",
    "ApiFailure",
    "StoredMessage",
    "api",
    "create_consumer",
    "ensure_consumer",
    "ensure_stream",
    "is_same",
    "last_message",
    "last_sequence",
    "list_messages",
    "store",
]

API_SECONDS = 5.0
_PAGE = 1000

WRONG_LAST_SEQUENCE = 10071
NO_MESSAGE = 10037
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
FIXED_KEYS = ("retention", "discard", "allow_msg_ttl", "max_age", "republish")
"""What of a stream must be as SAGE would have made it."""
_FULL = frozenset({10077, 10047, 10122})
"""Maximum messages, bytes or storage: `discard: new` refuses instead of dropping old ones."""


class ApiFailure(msgspec.Struct, frozen=True):
    """The error part of a JetStream answer."""

    code: int
    err_code: int = 0
    description: str = ""

    @property
    def is_full(self) -> bool:
        """True where the stream refuses for want of room."""
        return self.err_code in _FULL or "maximum" in self.description or "exceeded" in self.description


class _StreamState(msgspec.Struct, frozen=True):
    last_seq: int = 0


class _Message(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""
    time: str = ""


class ApiAnswer(msgspec.Struct, frozen=True):
    """Any JetStream answer: only the parts that are read here."""

    error: ApiFailure | None = None
    seq: int = 0
    duplicate: bool = False
    state: _StreamState | None = None
    message: _Message | None = None
    config: dict[str, object] | None = None


_decode = msgspec.json.Decoder(ApiAnswer).decode


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it lies in a stream; `stored_at` is in Unix seconds of the server's clock."""

    subject: str
    sequence: int
    payload: bytes
    headers: Mapping[str, str]
    stored_at: float


async def api(connection: Connection, subject: str, body: Mapping[str, object] | None = None) -> ApiAnswer:
    """Ask `$JS.API.<subject>`; errors of the API are returned. Raises BusUnavailable where it does not answer."""
    payload = msgspec.json.encode(body) if body is not None else b""
    try:
        target = f"$JS.API.{subject}".encode("ascii")
        answer = await connection.ask(target, payload, timeout=API_SECONDS, is_repeatable=True)
    except Unavailable as error:
        if isinstance(error, BusUnavailable):
            raise
        raise BusUnavailable("JetStream is not enabled on the NATS server, or it is starting") from None
    except DeadlineExceeded:
        raise BusUnavailable(f"JetStream did not answer {subject} within {API_SECONDS:g} s") from None
    return _decode(answer.payload)


async def store(
    connection: Connection,
    subject: bytes,
    payload: bytes,
    headers: Mapping[str, str] = NO_HEADERS,
    *,
    is_repeatable: bool,
    timeout: float = API_SECONDS,
) -> ApiAnswer:
    """Publish into a stream; return its PubAck or failure. Raises BusUnavailable where none came.

    `is_repeatable`: storing it twice does no harm, so that it may be sent again after a reconnect.
    """
    try:
        answer = await connection.ask(subject, payload, headers, timeout=timeout, is_repeatable=is_repeatable)
    except DeadlineExceeded:
        raise BusUnavailable(f"no stream confirmed a message within {timeout:g} s") from None
    except Unavailable as error:
        if isinstance(error, BusUnavailable):
            raise
        raise BusUnavailable(f"no stream listens on {subject.decode()}") from None
    return _decode(answer.payload)


async def ensure_stream(connection: Connection, plan: StreamPlan) -> None:
    """Create the stream unless it is there. Raises ConfigurationError where it is there and differs in kind.

    On a provisioned server nothing is created: a missing stream is a ConfigurationError, too.
    """
    info = await api(connection, f"STREAM.INFO.{plan.name}")
    if info.error is not None and info.error.err_code == STREAM_NOT_FOUND:
        if connection.is_provisioned:
            raise ConfigurationError(f"stream {plan.name} is missing; run `sage nats provision`")
        info = await api(connection, f"STREAM.CREATE.{plan.name}", {"name": plan.name, **plan.config})
    if info.error is not None:
        raise ConfigurationError(f"stream {plan.name}: {info.error.description}")
    found = info.config or {}
    for key in FIXED_KEYS:
        wanted = plan.config.get(key)
        if wanted is not None and not is_same(found.get(key), wanted):
            raise ConfigurationError(
                f"stream {plan.name} has {key} = {found.get(key)!r}; SAGE needs {wanted!r}; another program made it, "
                "or an older setting: remove it or use another name"
            )
    max_bytes = plan.config.get("max_bytes")
    if max_bytes not in (None, found.get("max_bytes")) and not connection.is_provisioned:
        changed = await api(connection, f"STREAM.UPDATE.{plan.name}", {**found, "max_bytes": max_bytes})
        if changed.error is not None:
            raise ConfigurationError(f"stream {plan.name}: {changed.error.description}")


def is_same(found: object, wanted: object) -> bool:
    """Tell whether a part of a configuration is as wanted; the server leaves out what is empty."""
    return found == wanted or (not found and not wanted)


async def ensure_consumer(connection: Connection, plan: ConsumerPlan) -> None:
    """Create the durable consumer unless it is there. Raises ConfigurationError, as `ensure_stream` does."""
    info = await api(connection, f"CONSUMER.INFO.{plan.stream}.{plan.name}")
    if info.error is not None and info.error.err_code == CONSUMER_NOT_FOUND:
        if connection.is_provisioned:
            raise ConfigurationError(
                f"consumer {plan.name} of stream {plan.stream} is missing; run `sage nats provision`"
            )
        info = await create_consumer(connection, plan)
    if info.error is not None:
        raise ConfigurationError(f"consumer {plan.name} of stream {plan.stream}: {info.error.description}")
    found = (info.config or {}).get("ack_wait")
    if connection.is_provisioned and found != plan.config["ack_wait"]:
        raise ConfigurationError(
            f"consumer {plan.name} of stream {plan.stream} has ack_wait = {found} ns; this process expects "
            f"{plan.config['ack_wait']} ns; run `sage nats provision` with the same settings"
        )


async def create_consumer(connection: Connection, plan: ConsumerPlan) -> ApiAnswer:
    """Create the durable consumer, or change the one that is there; errors of the API are returned."""
    body = {
        "stream_name": plan.stream,
        "config": {"durable_name": plan.name, "name": plan.name, **plan.config},
    }
    return await api(connection, f"CONSUMER.CREATE.{plan.stream}.{plan.name}", body)


async def last_message(connection: Connection, stream: str, subject: str) -> StoredMessage | None:
    """Return the last message on `subject`, from the stream's leader, so that we read our own writes."""
    answer = await api(connection, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    if answer.error is not None:
        if answer.error.err_code == NO_MESSAGE:
            return None
        raise BusUnavailable(f"stream {stream}: {answer.error.description}")
    found = answer.message
    if found is None:
        return None
    headers = parse_headers(base64.b64decode(found.hdrs)) if found.hdrs else {}
    return StoredMessage(
        found.subject, found.seq, base64.b64decode(found.data), headers, _unix_seconds(found.time)
    )


def _unix_seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0


async def last_sequence(connection: Connection, stream: str) -> int:
    """Return the sequence of the newest message the stream ever had."""
    answer = await api(connection, f"STREAM.INFO.{stream}")
    if answer.error is not None or answer.state is None:
        raise BusUnavailable(f"stream {stream}: {answer.error.description if answer.error else 'no state'}")
    return answer.state.last_seq


async def list_messages(
    connection: Connection, stream: str, subject: str, *, limit: int | None = None
) -> list[StoredMessage]:
    """Return the messages on `subject` in order: a few requests for thousands. Raises BusUnavailable."""
    found: list[StoredMessage] = []
    sequence = 1
    while limit is None or len(found) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page, is_last = await _list_page(connection, stream, subject, sequence, size)
        found.extend(page)
        if is_last or not page:
            break
        sequence = page[-1].sequence + 1
    return found


async def _list_page(
    connection: Connection, stream: str, subject: str, sequence: int, size: int
) -> tuple[list[StoredMessage], bool]:
    body = msgspec.json.encode({"seq": sequence, "batch": size, "next_by_subj": subject})
    target = f"$JS.API.DIRECT.GET.{stream}".encode("ascii")
    answers = await connection.gather(
        target, body, NO_HEADERS, API_SECONDS, None, ends=lambda a: bool(a.status), is_repeatable=True
    )
    if answers.is_unheard:
        raise BusUnavailable(f"stream {stream} does not answer")
    page: list[StoredMessage] = []
    for answer in answers.received:
        headers = parse_headers(answer.block)
        if answer.status:
            if answer.status.startswith("404"):
                return page, True
            if not answer.status.startswith("204"):
                raise BusUnavailable(f"stream {stream} answered {answer.status}")
            return page, headers.get("Nats-Num-Pending", "0") == "0"
        page.append(
            StoredMessage(
                headers.get("Nats-Subject", ""),
                int(headers.get("Nats-Sequence", "0")),
                answer.payload,
                headers,
                _unix_seconds(headers.get("Nats-Time-Stamp", "")),
            )
        )
    raise BusUnavailable(f"stream {stream} did not finish its answer within {API_SECONDS:g} s")
