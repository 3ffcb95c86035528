"""What is checked, written and read at the edge: subjects, headers, sizes, commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_bus.checks import check_size, check_target, is_inbox
from sage_bus.header_block import age_headers, encode_headers, header_status, parse_headers
from sage_bus.job import Delivery
from sage_bus.outbound import Postponed, publish_command
from sage_bus.routing import RoutingTable, matches
from sage_core import BusError, LimitExceeded

_NAMES = st.text("abcXYZ-_0189", min_size=1, max_size=12)
_VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), max_size=20
)


@given(st.dictionaries(_NAMES, _VALUES, min_size=1, max_size=5))
def test_headers_come_back_as_they_were_sent(headers: dict[str, str]):
    block = encode_headers(headers)
    assert parse_headers(block) == headers
    assert header_status(block) == ""


@given(st.binary(max_size=200))
def test_no_bytes_from_a_peer_make_reading_headers_fail(block: bytes):
    parse_headers(block)
    header_status(block)
    parse_headers(b"NATS/1.0" + block)
    header_status(b"NATS/1.0" + block)


def test_a_status_of_the_server_is_read_with_its_description():
    block = b"NATS/1.0 409 Consumer Deleted\r\nNats-Pending-Messages: 1\r\n\r\n"
    assert header_status(block) == "409 Consumer Deleted"
    assert parse_headers(block) == {"Nats-Pending-Messages": "1"}
    assert header_status(b"NATS/1.0 503\r\n\r\n") == "503"


def test_only_inboxes_may_be_answered():
    assert is_inbox("_INBOX.abc.1")
    assert is_inbox("_INBOX_gateway_1.7")
    assert not is_inbox("sagejobs.v1.submit")
    assert not is_inbox("_INBOX.a b")
    assert not is_inbox("_INBOX.>")


def test_a_target_has_no_wildcards_and_at_most_255_characters():
    assert check_target("a.b-c_D.0") == b"a.b-c_D.0"
    for subject in ("a.*", "a.>", "x" * 256, "", "a\n"):
        with pytest.raises(BusError):
            check_target(subject)


def test_the_limit_counts_every_byte():
    check_size(10, 10)
    with pytest.raises(LimitExceeded, match="11 bytes"):
        check_size(11, 10)


def test_commands_are_what_the_protocol_says():
    assert publish_command(b"a.b", b"", b"", b"xyz") == b"PUB a.b  3\r\nxyz\r\n"
    assert publish_command(b"a.b", b"_INBOX.1", b"", b"") == b"PUB a.b _INBOX.1 0\r\n\r\n"
    block = encode_headers({"A": "1"})
    assert publish_command(b"a", b"r", block, b"xy") == b"HPUB a r 18 20\r\n" + block + b"xy\r\n"


def test_the_budget_runs_while_a_message_waits():
    headers = {"Sage-Budget-Ms": "1000", "A": "1"}
    assert age_headers(headers, 0.4) == {"Sage-Budget-Ms": "600", "A": "1"}
    assert age_headers(headers, 1.0) is None
    assert age_headers({"A": "1"}, 99.0) == {"A": "1"}
    assert age_headers({"Sage-Budget-Ms": "soon"}, 99.0) == {"Sage-Budget-Ms": "soon"}


def test_a_postponed_message_is_not_written_once_nobody_wants_it():
    is_wanted = True
    command = publish_command(b"a", b"r", b"", b"")
    message = Postponed(command, b"a", b"r", b"", {}, 100.0, lambda: is_wanted)
    assert message.render(100.0) == command
    assert message.render(500.0) == command
    is_wanted = False
    assert message.render(100.0) == b""


def test_a_postponed_message_is_written_with_what_is_left_of_its_budget():
    headers = {"Sage-Budget-Ms": "1000"}
    command = publish_command(b"a", b"", encode_headers(headers), b"x")
    message = Postponed(command, b"a", b"", b"x", headers, 100.0, None)
    assert message.render(100.01) == command
    assert message.render(100.5) == publish_command(
        b"a", b"", encode_headers({"Sage-Budget-Ms": "500"}), b"x"
    )
    assert message.render(101.0) == b""


@pytest.mark.parametrize(
    ("subject", "num_delivered", "sequence"),
    [
        (b"$JS.ACK.S.workers.3.17.20.1700000000.0", 3, 17),
        (b"$JS.ACK.hub.ABCDEF.S.workers.2.9.20.1700000000.0", 2, 9),
        (b"$JS.ACK.hub.ABCDEF.S.workers.2.9.20.1700000000.0.token", 2, 9),
    ],
)
def test_a_delivery_is_read_from_its_acknowledgement_subject(subject, num_delivered, sequence):
    delivery = Delivery(subject)
    assert (delivery.num_delivered, delivery.sequence) == (num_delivered, sequence)


def test_what_is_no_acknowledgement_subject_is_refused():
    with pytest.raises(ValueError, match="not an acknowledgement subject"):
        Delivery(b"_INBOX.1")


@pytest.mark.parametrize(
    ("pattern", "subject", "is_match"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*.c", "a.b.c", True),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        (">", "a", True),
    ],
)
def test_patterns_cover_what_nats_says(pattern: str, subject: str, is_match: bool):
    assert matches(pattern, subject) is is_match


def test_a_routing_table_forgets_what_was_removed():
    table: RoutingTable[str] = RoutingTable()
    table.add("a.b", "exact")
    table.add("a.*", "wild")
    table.add("a.b", "second")
    assert table.find("a.b") == ["exact", "second", "wild"]
    for pattern, item in (("a.b", "exact"), ("a.*", "wild"), ("a.b", "second"), ("a.b", "never there")):
        table.remove(pattern, item)
    assert table.find("a.b") == []
    assert table.items() == []
