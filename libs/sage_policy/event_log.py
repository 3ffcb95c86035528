"""The event log: every event a policy got, when, and the commands it gave. Replaying it must give the same bytes.

    file    MAGIC, header frame, record frames
    frame   length of the body (4 bytes, big-endian), body (MessagePack)
    header  `LogHeader` as a map
    record  [now, kind of event, event, [[kind of command, command], …]], kinds being the names of the classes

Floats are 64 bits wide, so times and scores come back exactly as they were. Pure: the bytes are written elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import msgspec

from sage_core import BadRequest
from sage_policy.policy import Command, Event, Policy
from sage_policy.slo import SloClass

__all__ = [
    "MAGIC",
    "Difference",
    "EventLog",
    "LogHeader",
    "LogRecord",
    "encode_header",
    "encode_record",
    "read_log",
    "replay",
]

MAGIC: Final = b"SAGE event log 1\n"
MAX_FRAME_BYTES: Final = 64 * 2**20
_LENGTH_BYTES: Final = 4

_EVENTS: Final = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Event)}
_COMMANDS: Final = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Command)}


class LogHeader(msgspec.Struct, frozen=True):
    """What the policy was made from (see `make_policy`), and by whom.

    `version` is that of SAGE; another one may decide otherwise.
    """

    policy: str
    max_queued: int
    seed: int
    classes: dict[str, SloClass] = {}
    weights: dict[str, bool | int | float] = {}
    version: str = ""
    scheduler_id: str = ""
    epoch: str = ""


class _RawRecord(msgspec.Struct, array_like=True, frozen=True):
    now: float
    kind: str
    event: msgspec.Raw
    commands: msgspec.Raw


_encoder: Final = msgspec.msgpack.Encoder()
_header_decoder: Final = msgspec.msgpack.Decoder(LogHeader)
_record_decoder: Final = msgspec.msgpack.Decoder(_RawRecord)
_commands_decoder: Final = msgspec.msgpack.Decoder(list[tuple[str, msgspec.Raw]])


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One call of `Policy.handle`. `commands` are their bytes in the log."""

    now: float
    event: Event
    commands: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log that was read. `is_cut`: its last record was not written to its end, as its scheduler was killed."""

    header: LogHeader
    records: list[LogRecord]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """The first record, counted from 0, whose commands come out otherwise. Commands as a reader wants them."""

    index: int
    record: LogRecord
    recorded: list[Command]
    replayed: list[Command]


def encode_header(header: LogHeader) -> bytes:
    """Return what a log begins with."""
    return MAGIC + _frame(_encoder.encode(header))


def encode_record(event: Event, now: float, commands: Sequence[Command]) -> bytes:
    """Return one record."""
    return _frame(_encoder.encode((now, type(event).__name__, event, _named(commands))))


def read_log(data: bytes) -> EventLog:
    """Read a whole log. Raises BadRequest saying where what is no log, or of which kind none is known, was found."""
    if not data.startswith(MAGIC):
        raise BadRequest(f"no event log: expected it to begin with {MAGIC.decode().strip()!r}")
    frames = _frames(data, len(MAGIC))
    _, body = next(frames, (0, None))
    if body is None:
        raise BadRequest("the event log ends within its header")
    try:
        header = _header_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadRequest(f"event log, header: {error}") from None
    records: list[LogRecord] = []
    for offset, body in frames:
        if body is None:
            return EventLog(header, records, is_cut=True)
        try:
            records.append(_record(body))
        except (msgspec.DecodeError, KeyError) as error:
            reason = f"unknown event {error}" if isinstance(error, KeyError) else str(error)
            raise BadRequest(f"event log, record {len(records)} at byte {offset}: {reason}") from None
    return EventLog(header, records)


def replay(log: EventLog, make_policy: Callable[[LogHeader], Policy]) -> Difference | None:
    """Feed the events to a fresh policy; return the first difference, None where every command is the same."""
    policy = make_policy(log.header)
    for index, record in enumerate(log.records):
        commands = policy.handle(record.event, record.now)
        if _encoder.encode(_named(commands)) != record.commands:
            return Difference(index, record, _decoded(record.commands), list(commands))
    return None


def _named(commands: Sequence[Command]) -> list[tuple[str, Command]]:
    return [(type(command).__name__, command) for command in commands]


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _frames(data: bytes, start: int) -> Iterator[tuple[int, memoryview | None]]:
    """Yield the place and the body of each frame; None for one that is cut short, which ends it."""
    view = memoryview(data)
    while start < len(view):
        begin = start + _LENGTH_BYTES
        end = begin + int.from_bytes(view[start:begin], "big")
        if end - begin > MAX_FRAME_BYTES:
            raise BadRequest(f"event log, byte {start}: a record of {end - begin} bytes; expected fewer")
        if end > len(view) or begin > len(view):
            yield start, None
            return
        yield start, view[begin:end]
        start = end


def _record(body: memoryview) -> LogRecord:
    raw = _record_decoder.decode(body)
    event: Any = _EVENTS[raw.kind].decode(raw.event)
    return LogRecord(raw.now, event, bytes(raw.commands))


def _decoded(commands: bytes) -> list[Command]:
    found: list[Any] = [_COMMANDS[kind].decode(body) for kind, body in _commands_decoder.decode(commands)]
    return found
