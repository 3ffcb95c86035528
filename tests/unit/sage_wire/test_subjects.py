"""Subjects keep to one alphabet, whatever names come from outside; headers survive any peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_core import BusError, FakeClock
from sage_wire import CallHeaders, subjects

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@given(st.text())
def test_any_pool_name_makes_a_subject_that_nats_accepts(name: str) -> None:
    for make in (subjects.pool_submit, subjects.pool_cancel, subjects.pool_report):
        assert subjects.check_subject(make(name)) == make(name)
    token = subjects.pool_token(name)
    assert len(token) == 16
    assert token.isascii()
    assert token.isalnum()
    assert token == token.lower()


@given(st.text(max_size=40), st.text(max_size=40))
def test_two_names_never_share_a_pool(one: str, other: str) -> None:
    assert (subjects.pool_token(one) == subjects.pool_token(other)) == (one == other)


def test_the_token_of_a_name_is_fixed_for_ever() -> None:
    assert subjects.pool_token("all-MiniLM-L6-v2") == "a7nu4hyynw3s2fyt"


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "a b",
        "a..b",
        ".a",
        "a.",
        "a.*",
        "a.>",
        "a\r\nPUB x 0",
        "ä",
        "a\x00",
        "$SYS.a",
        "a" * 256,
        "_INBOX/x",
    ],
)
def test_a_subject_outside_the_alphabet_is_refused(subject: str) -> None:
    with pytest.raises(BusError):
        subjects.check_subject(subject)


@given(st.text(max_size=300))
def test_what_is_accepted_has_only_safe_characters(subject: str) -> None:
    try:
        subjects.check_subject(subject)
    except BusError:
        return
    assert set(subject) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    assert len(subject) <= 255


@pytest.mark.parametrize("pattern", ["sage.v1.pool.*.submit", "sage.v1.announce.>", "*.a"])
def test_wildcards_are_for_patterns_only(pattern: str) -> None:
    assert subjects.check_subject(pattern, is_pattern=True) == pattern
    with pytest.raises(BusError):
        subjects.check_subject(pattern)


@pytest.mark.parametrize("pattern", ["a.>.b", ">a", "a*", "a..>"])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BusError):
        subjects.check_subject(pattern, is_pattern=True)


def test_jobs_and_requests_share_no_prefix() -> None:
    requests = {subjects.pool_submit("m"), subjects.frames("c"), subjects.RECEIPTS_FIND}
    assert not any(subject.startswith(subjects.JOBS_SUBMIT.split(".")[0] + ".") for subject in requests)


def test_headers_come_back_as_they_were() -> None:
    headers = CallHeaders(call_id="call-1", budget_ms=1500, traceparent=TRACE)
    assert CallHeaders.decode(headers.encode()) == headers
    assert CallHeaders.decode(CallHeaders().encode()) == CallHeaders()


@given(st.dictionaries(st.sampled_from(["Sage-Call", "Sage-Budget-Ms", "traceparent", "X"]), st.text()))
def test_malformed_headers_count_as_absent(headers: dict[str, str]) -> None:
    decoded = CallHeaders.decode(headers)
    assert CallHeaders.decode(decoded.encode()) == decoded
    assert decoded.budget_ms is None or 0 <= decoded.budget_ms <= 24 * 3600 * 1000


def test_a_budget_is_counted_on_the_receivers_clock() -> None:
    clock = FakeClock(100.0)
    budget = CallHeaders(budget_ms=1500).budget(default=60.0, clock=clock)
    clock.advance(1.0)
    assert budget.remaining == 0.5
    assert CallHeaders().budget(default=60.0, clock=clock).remaining == 60.0
    assert CallHeaders(budget_ms=-5).encode()["Sage-Budget-Ms"] == "0"
