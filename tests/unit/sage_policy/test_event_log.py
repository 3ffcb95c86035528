"""Promises of the event log: every event and command comes back as it was, and a replay gives the same bytes."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest
from sage_policy import (
    Abort,
    Cancelled,
    Candidate,
    Command,
    Decision,
    Dispatch,
    EngineProfile,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceDown,
    InstanceUp,
    Policy,
    PoolClosed,
    Progressed,
    ScaleHint,
    SetTimer,
    Shed,
    SloClass,
    Started,
    Submitted,
    Telemetry,
    Timer,
    make_policy,
)
from sage_policy.event_log import (
    MAGIC,
    LogHeader,
    encode_header,
    encode_record,
    read_log,
    replay,
)

NAMES = st.text("abc/0123456789-", min_size=1, max_size=8)
COUNTS = st.integers(0, 2**31 - 1)
FLOATS = st.floats(allow_nan=False)
SECONDS = st.floats(0, 1e9)
PROFILES = st.builds(
    EngineProfile, a0=FLOATS, m1=FLOATS, max_sequences=COUNTS, kv_tokens=COUNTS, watermark=FLOATS
)
INSTANCES = st.builds(
    Instance,
    instance_id=NAMES,
    pool=NAMES,
    max_in_flight=COUNTS,
    in_flight=st.lists(NAMES, max_size=3).map(tuple),
    is_batched=st.booleans(),
    is_gpu=st.booleans(),
    device=NAMES,
    usd_per_hour=FLOATS,
    prefix_block=COUNTS,
    profile=PROFILES,
)
SUBMITTED = st.builds(
    Submitted,
    key=NAMES,
    pool=NAMES,
    deadline=FLOATS,
    num_items=COUNTS,
    ttft_slo=st.none() | FLOATS,
    started_ago=FLOATS,
    blocks=st.lists(st.integers(0, 2**64 - 1), max_size=3).map(tuple),
    route=NAMES,
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    SUBMITTED,
    st.builds(Started, NAMES),
    st.builds(FirstToken, NAMES, COUNTS),
    st.builds(Progressed, NAMES, COUNTS),
    st.builds(Finished, NAMES, COUNTS),
    st.builds(Cancelled, NAMES),
    st.builds(InstanceUp, INSTANCES),
    st.builds(InstanceDown, NAMES, NAMES, st.booleans()),
    st.builds(Telemetry, NAMES, NAMES, COUNTS, COUNTS, FLOATS),
    st.builds(PoolClosed, NAMES),
    st.just(Timer()),
)
DECISIONS = st.builds(
    Decision,
    reason=NAMES,
    queue_seconds=FLOATS,
    num_queued=COUNTS,
    candidates=st.lists(st.builds(Candidate, NAMES, FLOATS, NAMES), max_size=3).map(tuple),
    predicted_ttft=FLOATS,
    predicted_tpot=FLOATS,
    predicted_e2e=FLOATS,
)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(Dispatch, NAMES, NAMES, DECISIONS, COUNTS),
    st.builds(Shed, NAMES, NAMES, st.none() | FLOATS, DECISIONS),
    st.builds(Abort, NAMES, NAMES, DECISIONS),
    st.builds(SetTimer, FLOATS),
    st.builds(ScaleHint, NAMES, COUNTS, DECISIONS),
)
HEADER = LogHeader(
    policy="hybrid", max_queued=64, seed=3, classes={"interactive": SloClass(ttft=1.0)}, version="0"
)


class Told:
    """A policy that gives the commands it was told to give, one list per event."""

    name = "told"

    def __init__(self, *answers: list[Command]) -> None:
        self.answers = list(answers)
        self.heard: list[tuple[Event, float]] = []

    def handle(self, event: Event, now: float) -> list[Command]:
        self.heard.append((event, now))
        return self.answers.pop(0)


def log_of(*records: tuple[Event, float, list[Command]]) -> bytes:
    return encode_header(HEADER) + b"".join(encode_record(*record) for record in records)


@given(st.lists(st.tuples(EVENTS, SECONDS, st.lists(COMMANDS, max_size=3)), max_size=5))
def test_what_was_recorded_comes_back_and_replays_without_a_difference(records: Any) -> None:
    log = read_log(log_of(*records))
    assert log.header == HEADER
    assert not log.is_cut
    policy = Told(*(commands for _, _, commands in records))
    assert replay(log, lambda _: policy) is None
    assert [(event, struct.pack("d", now)) for event, now in policy.heard] == [
        (event, struct.pack("d", now)) for event, now, _ in records
    ]


@given(EVENTS, SECONDS, st.lists(COMMANDS, min_size=1, max_size=3))
def test_commands_that_come_out_otherwise_are_shown(
    event: Event, now: float, commands: list[Command]
) -> None:
    log = read_log(log_of((Timer(), 0.0, []), (event, now, commands)))
    found = replay(log, lambda _: Told([], commands[1:]))
    assert found is not None
    assert (found.index, found.recorded, found.replayed) == (1, commands, commands[1:])


def test_predictions_that_were_not_made_are_the_same_in_a_replay() -> None:
    commands: list[Command] = [Dispatch("r/0", "w", Decision("because", 0.0, 0))]
    assert replay(read_log(log_of((Timer(), 1.0, commands))), lambda _: Told(commands)) is None


@given(EVENTS, st.integers(1, 40))
def test_a_log_that_was_cut_short_is_read_up_to_there(event: Event, num_missing: int) -> None:
    whole = log_of((Timer(), 0.0, []))
    last = encode_record(event, 1.0, [])
    log = read_log(whole + last[: max(1, len(last) - num_missing)])
    assert log.is_cut
    assert [record.event for record in log.records] == [Timer()]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no event log"),
        (b"something else entirely", "no event log"),
        (MAGIC, "ends within its header"),
        (MAGIC + b"\0\0\0\1\xc1", "header"),
        (MAGIC + b"\xff\xff\xff\xff", "bytes; expected fewer"),
        (log_of() + b"\0\0\0\1\xc0", "record 0 at byte"),
        (log_of() + b"\0\0\0\6\x94\0\xa1X\xc0\x90", "unknown event 'X'"),
    ],
)
def test_what_is_no_log_is_refused_saying_where(data: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=reason):
        read_log(data)


def test_a_field_that_a_later_version_added_is_read_with_its_default() -> None:
    body = msgspec.msgpack.encode((1.0, "Submitted", {"key": "r/0", "pool": "m", "deadline": 2.0}, []))
    log = read_log(log_of() + len(body).to_bytes(4, "big") + body)
    assert log.records[0].event == Submitted("r/0", "m", 2.0)


def made(header: LogHeader) -> Policy:
    return make_policy(
        header.policy,
        max_queued=header.max_queued,
        seed=header.seed,
        classes=header.classes,
        **header.weights,
    )


POOLS = st.sampled_from(["chat", "embed"])
KEYS = st.tuples(POOLS, st.integers(0, 6)).map(lambda pair: f"{pair[0]}-{pair[1]}/0")
WORKERS = st.sampled_from(["w0", "w1", "w2"])


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, Event]]:
    """What a scheduler may hear in some minutes, in any order that a bus may deliver."""
    now, history = 100.0, []
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.floats(0, 2))
        pool = draw(POOLS)
        own = st.integers(0, 6).map(lambda number, pool=pool: f"{pool}-{number}/0")
        instance = Instance(
            draw(WORKERS), pool, draw(st.integers(1, 4)), is_batched=pool == "embed", device="d",
            in_flight=tuple(draw(st.lists(own, max_size=2, unique=True))),
            profile=EngineProfile(a0=0.02, m0=0.02, m1=1e-4),
        )  # fmt: skip
        request = Submitted(
            draw(own), pool, now + draw(st.floats(0.1, 20)), num_prompt_tokens=draw(st.integers(0, 4000)),
            ttft_slo=draw(st.none() | st.floats(0.1, 2)), blocks=(1, 2, 3), tenant=draw(NAMES),
        )  # fmt: skip
        event: Event = draw(
            st.one_of(
                st.just(request),
                st.just(request),
                st.just(InstanceUp(instance)),
                st.just(InstanceDown(instance.instance_id, pool, draw(st.booleans()))),
                st.builds(Started, KEYS),
                st.builds(FirstToken, KEYS, st.integers(0, 100)),
                st.builds(Progressed, KEYS, st.integers(0, 100)),
                st.builds(Finished, KEYS, st.integers(0, 100)),
                st.builds(Cancelled, KEYS),
                st.builds(Telemetry, WORKERS, POOLS, st.integers(0, 9), st.integers(0, 9), st.floats(0, 1)),
                st.builds(PoolClosed, POOLS),
                st.just(Timer()),
            )
        )
        history.append((now, event))
    return history


@pytest.mark.parametrize("name", ["hybrid", "least-outstanding+hold", "random", "lmetric+hold+shed"])
@settings(max_examples=40)
@given(history=histories())
def test_a_policy_made_anew_gives_every_command_again(name: str, history: list[tuple[float, Event]]) -> None:
    header = msgspec.structs.replace(HEADER, policy=name)
    policy = made(header)
    records = [(event, now, policy.handle(event, now)) for now, event in history]
    data = encode_header(header) + b"".join(encode_record(*record) for record in records)
    assert replay(read_log(data), made) is None
