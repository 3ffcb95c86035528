"""What one release wrote, every later one reads; and what is written is plain MessagePack that any language reads."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest
from jsonschema import Draft202012Validator

from sage_wire import decode, decode_work, encode, schema
from sage_wire.messages import (
    Delta,
    Frame,
    JobState,
    JobStatus,
    Message,
    Submit,
    Tokens,
    Work,
    WorkSize,
)
from sage_wire.samples import SAMPLES

PROTO = Path(__file__).parents[3] / "proto"
GOLDEN = sorted((PROTO / "golden").glob("*.msgpack"))
BY_NAME = {kind.__name__: kind for kind in schema.message_types()}


def kind_of(name: str) -> type[Message]:
    return BY_NAME[name.partition(".")[0]]


def as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_released_bytes_still_mean_the_same(path: Path) -> None:
    assert decode(kind_of(path.stem), path.read_bytes()) == SAMPLES[path.stem]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_message_is_written_as_released_bytes(name: str) -> None:
    assert encode(SAMPLES[name]) == (PROTO / "golden" / f"{name}.msgpack").read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_plain_messagepack_holds_what_the_schema_says(name: str) -> None:
    document = json.loads((PROTO / "schemas" / f"{kind_of(name).__name__}.json").read_text())
    Draft202012Validator.check_schema(document)
    plain = msgpack.unpackb(encode(SAMPLES[name]))
    Draft202012Validator(document).validate(as_json(plain))
    assert decode(kind_of(name), msgpack.packb(plain)) == SAMPLES[name]


def test_every_message_has_a_sample() -> None:
    assert set(BY_NAME) == {name.partition(".")[0] for name in SAMPLES}


@pytest.mark.parametrize("name", BY_NAME)
def test_samples_set_every_field(name: str) -> None:
    written: set[str] = set()
    for sample_name, sample in SAMPLES.items():
        if sample_name.partition(".")[0] == name:
            written |= set(msgpack.unpackb(encode(sample)))
    assert written >= {field.name for field in msgspec.structs.fields(BY_NAME[name])}


@pytest.mark.parametrize("name", SAMPLES)
def test_unknown_fields_of_a_newer_peer_are_ignored(name: str) -> None:
    plain = msgpack.unpackb(encode(SAMPLES[name]))
    newer = {"a_field_to_come": {"deep": [1, None, b"x"]}, **plain, "zzz": 1.5}
    assert decode(kind_of(name), msgpack.packb(newer)) == SAMPLES[name]


@pytest.mark.parametrize("name", BY_NAME)
def test_only_required_fields_must_be_there_and_the_rest_have_defaults(name: str) -> None:
    kind = BY_NAME[name]
    plain = msgpack.unpackb(encode(SAMPLES[name]))
    required = {field.name for field in msgspec.structs.fields(kind) if field.required}
    smallest = {key: value for key, value in plain.items() if key in required or key == "type"}
    decoded = decode(kind, msgpack.packb(smallest))
    for field in msgspec.structs.fields(kind):
        if not field.required and field.default is not msgspec.NODEFAULT:
            assert getattr(decoded, field.name) == field.default
    assert set(msgpack.unpackb(encode(decoded))) <= set(smallest)


def test_defaults_are_not_written() -> None:
    assert msgpack.unpackb(encode(WorkSize())) == {}
    state = JobState(job_id="j", status=JobStatus.QUEUED, pipeline="p")
    assert msgpack.unpackb(encode(state)) == {"job_id": "j", "status": "queued", "pipeline": "p"}
    assert decode(JobState, encode(state)) == state


def test_an_unknown_kind_of_event_is_refused_whole() -> None:
    from sage_core import BadRequest

    plain = msgpack.unpackb(encode(SAMPLES["Frame"]))
    plain["deltas"][0]["event"]["type"] = "event_to_come"
    with pytest.raises(BadRequest, match="malformed Frame"):
        decode(Frame, msgpack.packb(plain))


def test_work_passes_a_scheduler_without_being_decoded() -> None:
    submit = decode(Submit, encode(SAMPLES["Submit"]))
    assert isinstance(submit.work, msgspec.Raw)
    assert decode_work(submit.work) == SAMPLES["Generate"]
    assert encode(submit) == encode(SAMPLES["Submit"])


@pytest.mark.parametrize("kind", Work.__args__)  # type: ignore[attr-defined]
def test_work_is_told_apart_by_its_tag(kind: type[Message]) -> None:
    sample = SAMPLES[kind.__name__]
    assert type(decode_work(encode(sample))) is kind


def test_frames_keep_order() -> None:
    deltas = [
        Delta(request_id=f"r{seq % 3}", attempt=0, seq=seq, event=Tokens(text=str(seq))) for seq in range(50)
    ]
    assert decode(Frame, encode(Frame(deltas=deltas))).deltas == deltas
