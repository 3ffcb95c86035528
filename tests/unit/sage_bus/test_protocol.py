"""What the server says, however its bytes are cut on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_bus.protocol import MAX_LINE, Parser
from sage_core import BusError

Told = tuple[bytes, ...]

_TOKENS = st.text("abcXYZ019_-.", min_size=1, max_size=12).map(str.encode)
_BODIES = st.binary(max_size=64) | st.just(b"MSG a 1 3\r\nPING\r\n\r\n")


def parse(chunks: list[bytes]) -> list[Told]:
    told: list[Told] = []
    parser = Parser(lambda *message: told.append(message), lambda line: told.append((line,)))
    for chunk in chunks:
        parser.feed(chunk)
    return told


@st.composite
def _said(draw: st.DrawFn) -> tuple[bytes, Told]:
    """Return what is said, and how it must be told: sid, subject, reply, payload, header block."""
    kind = draw(st.sampled_from(["MSG", "HMSG", "LINE"]))
    if kind == "LINE":
        line = draw(
            st.sampled_from([b"PING", b"PONG", b"+OK", b"-ERR 'Permissions Violation'", b'INFO {"a":1}'])
        )
        return line + b"\r\n", (line,)
    subject, sid = draw(_TOKENS), b"%d" % draw(st.integers(1, 10**6))
    reply = draw(st.just(b"") | _TOKENS)
    payload = draw(_BODIES)
    block = b"NATS/1.0\r\nA: " + draw(_TOKENS) + b"\r\n\r\n" if kind == "HMSG" else b""
    fields = [kind.encode(), subject, sid, *([reply] if reply else [])]
    if kind == "HMSG":
        fields.append(b"%d" % len(block))
    fields.append(b"%d" % (len(block) + len(payload)))
    return b" ".join(fields) + b"\r\n" + block + payload + b"\r\n", (sid, subject, reply, payload, block)


@given(st.lists(_said(), max_size=8), st.lists(st.integers(1, 200), max_size=40))
def test_every_message_and_line_comes_out_once_in_order_however_it_is_cut(
    said: list[tuple[bytes, Told]], sizes: list[int]
) -> None:
    data = b"".join(one for one, _ in said)
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    assert parse([*chunks, data]) == [told for _, told in said]


def test_a_large_message_in_many_pieces_is_told_once_it_is_whole() -> None:
    body = bytes(range(256)) * 4096
    data = b"MSG a 1 %d\r\n" % len(body) + body + b"\r\nPONG\r\n"
    pieces = [data[start : start + 65536] for start in range(0, len(data), 65536)]
    assert parse(pieces) == [(b"1", b"a", b"", body, b""), (b"PONG",)]


@pytest.mark.parametrize(
    "line",
    [b"MSG a 1 x", b"MSG a", b"MSG a 1 r extra 3", b"HMSG a 1 3", b"HMSG a 1 9 3", b"x" * (MAX_LINE + 1)],
)
def test_what_is_no_such_protocol_is_refused(line: bytes) -> None:
    with pytest.raises(BusError, match="the server sent"):
        parse([line + (b"" if line.startswith(b"x") else b"\r\nabc\r\n")])
