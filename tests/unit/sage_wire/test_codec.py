"""Whatever arrives, the codec returns a message or raises BadRequest; nothing else ever leaves it."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest
from sage_wire import decode, decode_work, encode, encode_list, schema
from sage_wire.messages import (
    Delta,
    Dispatch,
    Frame,
    Generate,
    Ping,
    Report,
    ReportEvent,
    Reports,
    SplitChunks,
    Submit,
)
from sage_wire.samples import SAMPLES

KINDS = schema.message_types()
NAMES = sorted(SAMPLES)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def read(kind: type, payload: bytes) -> None:
    refusal = None
    try:
        assert type(decode(kind, payload)) is kind
    except BadRequest as error:
        refusal = error
    assert refusal is None or kind.__name__ in refusal.message


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), payload=st.binary(max_size=200))
def test_random_bytes(kind: type, payload: bytes) -> None:
    read(kind, payload)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), value=PLAIN)
def test_well_formed_messagepack_of_any_shape(kind: type, value: object) -> None:
    read(kind, msgpack.packb(value))


@settings(max_examples=120, deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_bytes_changed_or_cut_off_anywhere(name: str, data: st.DataObject) -> None:
    payload = bytearray(encode(SAMPLES[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    read(type(SAMPLES[name]), bytes(payload[: data.draw(st.integers(0, len(payload)))]))


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(NAMES), value=PLAIN, data=st.data())
def test_a_field_of_the_wrong_type(name: str, value: object, data: st.DataObject) -> None:
    plain = msgpack.unpackb(encode(SAMPLES[name]))
    if plain:
        plain[data.draw(st.sampled_from(sorted(plain)))] = value
    read(type(SAMPLES[name]), msgpack.packb(plain))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_random_work(payload: bytes) -> None:
    with contextlib.suppress(BadRequest):
        decode_work(payload)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_at_all_is_refused(kind: type) -> None:
    with pytest.raises(BadRequest):
        decode(kind, b"")


@pytest.mark.parametrize("kind", [Frame, Submit, Dispatch, Ping])
def test_deep_nesting_is_refused_not_fatal(kind: type) -> None:
    with pytest.raises(BadRequest):
        decode(kind, b"\x81\xa1x" * 5000 + b"\xc0")


def test_a_length_that_lies_is_refused_at_no_cost() -> None:
    payload = b"\x81\xa6deltas\xdd" + struct.pack(">I", 2**32 - 1)
    tracemalloc.start()
    with pytest.raises(BadRequest):
        decode(Frame, payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_megabyte_of_empty_maps_is_refused_at_no_cost() -> None:
    payload = b"\x81\xa6deltas\xdd" + struct.pack(">I", 1_000_000) + b"\x80" * 1_000_000
    tracemalloc.start()
    with pytest.raises(BadRequest, match="request_id"):
        decode(Frame, payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_text_that_is_not_utf8_is_refused() -> None:
    payload = encode(Generate(model="MODEL", prompt=SAMPLES["TextPrompt"])).replace(
        b"MODEL", b"\xff\xfe\xfa\xfb\xfc"
    )
    with pytest.raises(BadRequest):
        decode(Generate, payload)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(BadRequest):
        decode(Delta, encode(SAMPLES["Delta"]) + b"\x00")


def test_the_error_names_message_and_field() -> None:
    plain = msgpack.unpackb(encode(SAMPLES["SplitChunks"]))
    plain["chunks"][0]["position"] = "two"
    with pytest.raises(
        BadRequest, match=r"malformed SplitChunks: Expected `int`, got `str`.*chunks.*position"
    ):
        decode(SplitChunks, msgpack.packb(plain))


@pytest.mark.parametrize("num_items", [0, 1, 2, 15, 16, 17, 255, 70_000])
def test_a_list_of_encoded_items_is_the_message_that_holds_them(num_items: int) -> None:
    report = Report(worker_id="w", pool="p", request_id="r", attempt=0, event=ReportEvent.STARTED)
    assert encode_list("reports", [encode(report)] * num_items) == encode(
        Reports(reports=[report] * num_items)
    )
