"""Bodies as clients really send them: what is no JSON, too deep or too large is told apart from what is wrong."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_core import BadRequest, LimitExceeded
from sage_gateway.decoding import (
    MAX_DEPTH,
    MAX_VALUES,
    BodyDecoder,
    RawObject,
    Unsupported,
    absent,
    has_more_values,
    is_deeper,
    is_null,
)
from sage_gateway.errors import HttpRefused


class Body(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    number: int | None = None
    items: list[str] | None = None
    raw: RawObject = msgspec.field(default_factory=absent)


class Limited(msgspec.Struct, frozen=True):
    number: Annotated[int, msgspec.Meta(le=2**31)]


LIMITED = BodyDecoder(Limited)
DECODER = BodyDecoder(
    Body, frozenset({"hint"}), {"magic": Unsupported("there is none"), "safe": Unsupported("no", (b"true",))}
)


def decode(payload: bytes) -> Any:
    return DECODER.decode(payload)


@pytest.mark.parametrize(
    ("payload", "num_ignored"),
    [
        (b'{"name":"a"}', 0),
        (b'{"name":"a","hint":{"x":1}}', 0),
        (b'{"name":"a","hint":1,"colour":1,"taste":{"x":[1]}}', 2),
        (b'{"name":"a","magic":null,"safe":true}', 0),
        (b'{"name":"a","magic": [ ],"other":1}', 1),
    ],
)
def test_fields_without_meaning_are_counted(payload: bytes, num_ignored: int) -> None:
    assert decode(payload).num_ignored == num_ignored


def test_the_last_of_equal_names_counts() -> None:
    assert decode(b'{"name":"a","name":"b"}').body.name == "b"


@pytest.mark.parametrize(
    ("payload", "param"),
    [
        (b'{"name":"a","magic":1}', "magic"),
        (b'{"name":"a","magic":{"x":1}}', "magic"),
        (b'{"name":"a","safe":false}', "safe"),
        (b'{"name":5}', "name"),
        (b'{"name":"a","number":1e3}', "number"),
        (b'{"name":"a","items":["a",1]}', "items[1]"),
        (b"{}", "name"),
        (b"[]", None),
    ],
)
def test_what_is_wrong_is_named(payload: bytes, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(payload)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"name":NaN}',
        b'{"name":"a","x":Infinity}',
        b'{"name":"\\ud800"}',
        b'{"name":"a","x":"\\udc00\\ud800"}',
        b'{"name":"\xff"}',
        b'{"name":"a"} x',
        b'{"name":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"name":"a","raw":' + b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH + b"}",
        b'{"name":"a","x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
    ],
)
def test_what_is_no_json_or_too_deep_is_called_that(payload: bytes) -> None:
    with pytest.raises(HttpRefused) as caught:
        decode(payload)
    assert (caught.value.http_error.status, caught.value.http_error.code) == (400, "invalid_json")


def test_huge_numbers_are_wrong_values_not_crashes() -> None:
    for number in (b"9" * 30, b"9" * 10_000, b"-" + b"9" * 10_000, b"1e999"):
        with pytest.raises((BadRequest, LimitExceeded)):
            LIMITED.decode(b'{"number":' + number + b"}")


def test_null_and_absence_are_one_for_raw_fields() -> None:
    assert is_null(decode(b'{"name":"a"}').body.raw)
    assert is_null(decode(b'{"name":"a","raw":null}').body.raw)
    assert not is_null(decode(b'{"name":"a","raw":"null"}').body.raw)


VALUES = st.recursive(
    st.none() | st.booleans() | st.text('[]{}"\\ax', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\a', max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max([0, *map(depth, value.values() if isinstance(value, dict) else value)])


@given(VALUES)
def test_depth_is_counted_as_by_reading(value: Any) -> None:
    payload = json.dumps(value).encode()
    levels = depth(value)
    assert not is_deeper(payload, levels)
    assert levels == 0 or is_deeper(payload, levels - 1)


def num_values(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + num_values(inner) for inner in value.values())
    if isinstance(value, list):
        return 1 + sum(map(num_values, value))
    return int(isinstance(value, str))


@given(VALUES)
def test_values_are_counted_as_by_reading(value: Any) -> None:
    payload = json.dumps(value).encode()
    count = num_values(value)
    assert not has_more_values(payload, count)
    assert count == 0 or has_more_values(payload, count - 1)


def test_a_body_of_too_many_values_is_refused_before_it_is_read() -> None:
    # What these bodies are wrong in is never found out: reading them is what is too dear.
    for value in (b'"k":"v"', b'"k":{}'):
        with pytest.raises(LimitExceeded, match=f"more than {MAX_VALUES} strings"):
            decode(b'{"other":{' + b",".join([value] * (MAX_VALUES // 2 + 1)) + b"}}")
    assert decode(b'{"name":"a","raw":[%b0]}' % (b"1," * MAX_VALUES)).num_ignored == 0
    assert decode(b'{"name":"%b"}' % (b'{[\\"' * MAX_VALUES)).num_ignored == 0
