"""Denials are counted, each told once, and never flood the log; messages out of streams are known as such."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from sage_bus.checks import is_from_stream
from sage_bus.denials import Denials, find_denial


def test_a_denial_names_role_subject_and_remedy():
    error = Denials("gateway").denied("publish", "sage.v1.a")
    assert "role gateway may not publish on sage.v1.a" in error.message
    assert "sage nats config --users" in error.message
    assert "this user may not subscribe to b" in Denials("").denied("subscription", "b").message


def test_each_subject_is_told_once_and_a_thousand_denials_in_a_few_lines():
    denials = Denials("gateway")
    with capture_logs() as logs:
        for _ in range(1000):
            denials.denied("publish", "a")
        denials.denied("publish", "b")
        denials.denied("subscription", "b")
    assert denials.num_denied == 1002
    told = [(entry["right"], entry["subject"]) for entry in logs]
    assert told.count(("publish", "a")) == 10  # the 1st, 2nd, 4th … 512th
    assert told[-2:] == [("publish", "b"), ("subscription", "b")]


@pytest.mark.parametrize(
    ("error", "found"),
    [
        ('nats: permissions violation for publish to "a.b"', ("publish", "a.b")),
        ('nats: permissions violation for subscription to "a.>" using queue "q"', ("subscription", "a.>")),
        ("nats: slow consumer", None),
    ],
)
def test_denials_are_told_from_other_errors(error, found):
    assert find_denial(error) == found


@pytest.mark.parametrize(
    ("reply", "block", "is_stream"),
    [
        (b"", b"", False),
        (b"_INBOX_gateway.x.1", b"", False),
        (b"", b"NATS/1.0\r\ntraceparent: 00-a-b-01\r\n\r\n", False),
        (b"", b"NATS/1.0\r\nNats-Stream: KV_sage_jobs\r\nNats-Subject: x\r\n\r\n", True),
        (b"$JS.ACK.SAGE_JOBS.workers.1.1.1.1.0", b"", True),
    ],
)
def test_what_the_server_delivers_out_of_a_stream_is_known(reply, block, is_stream):
    assert is_from_stream(reply, block) == is_stream


def test_messages_out_of_streams_are_counted_and_told_ever_more_seldom():
    denials = Denials("llm-worker")
    with capture_logs() as logs:
        for _ in range(100):
            denials.refused_stream(b"a")
    assert denials.num_from_streams == 100
    assert len(logs) == 7
