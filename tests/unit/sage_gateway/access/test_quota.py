"""The quota state machine, held against every sequence of calls that hypothesis finds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.access.quota import (
    EMPTY,
    LEASE_SECONDS,
    WINDOW_SECONDS,
    Ask,
    Limit,
    Quota,
    charge,
    decide,
    decode_state,
    encode_state,
    hold,
    refund,
)

NOW = 1_800_000_000.0


@dataclass(frozen=True)
class Call:
    """An ask `wait` seconds after the one before, at one of three gateways; their clocks differ by `error`."""

    wait: float
    gateway: str
    num_tokens: int
    num_requests: int
    error: float


calls = st.lists(
    st.builds(
        Call,
        wait=st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 90)),
        gateway=st.sampled_from("abc"),
        num_tokens=st.integers(0, 60),
        num_requests=st.integers(1, 3),
        error=st.just(0.0),
    ),
    max_size=80,
)
limits = st.one_of(st.none(), st.integers(1, 100))


@given(calls, st.integers(1, 20), st.integers(1, 200))
def test_no_minute_sees_more_than_the_limit_and_nothing_is_refused_that_fits(
    sequence: list[Call], rpm: int, tpm: int
) -> None:
    quota = Quota(requests_per_minute=rpm, tokens_per_minute=tpm)
    state, now = EMPTY, NOW
    admitted: list[tuple[float, Call]] = []
    for call in sequence:
        now += call.wait
        state, decision = decide(state, Ask(quota, call.gateway, call.num_tokens, call.num_requests), now)
        if decision.refused_by is None:
            admitted.append((now, call))
            inside = [other for at, other in admitted if now - at < WINDOW_SECONDS]
            assert sum(other.num_requests for other in inside) <= rpm
            assert sum(other.num_tokens for other in inside) <= tpm
        else:
            around = [other for at, other in admitted if now - at <= WINDOW_SECONDS + 1]
            is_over = sum(other.num_requests for other in around) + call.num_requests > rpm
            is_over = is_over or sum(other.num_tokens for other in around) + call.num_tokens > tpm
            assert is_over


@given(calls, st.integers(1, 5))
def test_concurrency_is_never_exceeded_and_always_granted_where_there_is_room(
    sequence: list[Call], maximum: int
) -> None:
    quota = Quota(concurrency=maximum)
    state, now = EMPTY, NOW
    held = dict.fromkeys("abc", 0)
    for call in sequence:
        now += min(call.wait, 1.0)
        if call.num_tokens % 2 and held[call.gateway]:
            held[call.gateway] -= 1
        for gateway, number in held.items():  # as heartbeats do, in time
            state = hold(state, gateway, number, now)
        state, decision = decide(state, Ask(quota, call.gateway, 0), now)
        assert (decision.refused_by is None) == (sum(held.values()) < maximum)
        if decision.refused_by is None:
            held[call.gateway] += 1
        assert sum(holder.num_held for holder in state.holders) == sum(held.values())


@given(calls, st.integers(1, 20), st.integers(1, 200))
def test_the_same_ask_is_admitted_after_the_time_that_a_refusal_names_and_not_before(
    sequence: list[Call], rpm: int, tpm: int
) -> None:
    quota = Quota(requests_per_minute=rpm, tokens_per_minute=tpm)
    state, now = EMPTY, NOW
    for call in sequence:
        now += call.wait
        ask = Ask(quota, call.gateway, call.num_tokens, call.num_requests)
        state, decision = decide(state, ask, now)
        if decision.refused_by is None:
            continue
        if decision.retry_after is None:
            assert call.num_requests > rpm or call.num_tokens > tpm
            continue
        assert decide(state, ask, now + decision.retry_after + 1e-6)[1].refused_by is None
        assert decide(state, ask, now + decision.retry_after - 0.001)[1].refused_by is not None


@given(calls, limits, limits)
def test_what_a_decision_says_is_left_can_be_taken(
    sequence: list[Call], rpm: int | None, tpm: int | None
) -> None:
    quota = Quota(requests_per_minute=rpm, tokens_per_minute=tpm)
    state, now = EMPTY, NOW
    for call in sequence:
        now += call.wait
        state, decision = decide(state, Ask(quota, call.gateway, call.num_tokens, call.num_requests), now)
        assert (decision.remaining_requests is None) == (rpm is None)
        assert (decision.remaining_tokens is None) == (tpm is None)
        rest = Ask(quota, "a", decision.remaining_tokens or 0, decision.remaining_requests or 1)
        if decision.remaining_requests != 0:
            assert decide(state, rest, now)[1].refused_by is None
        later = max(decision.reset_requests, decision.reset_tokens)
        everything = Ask(quota, "a", tpm or 0, rpm or 1)
        assert decide(state, everything, now + later + 1e-6)[1].refused_by is None


@given(calls, st.data())
def test_a_refund_frees_what_it_gives_back_and_never_more_than_was_taken(
    sequence: list[Call], data: st.DataObject
) -> None:
    quota = Quota(tokens_per_minute=100)
    state, now = EMPTY, NOW
    for call in sequence:
        now += call.wait
        state, decision = decide(state, Ask(quota, call.gateway, call.num_tokens), now)
        before = sum(slot.num_tokens for slot in state.slots)
        assert before <= 100
        if decision.refused_by is None:
            given_back = data.draw(st.integers(0, call.num_tokens))
            state = refund(state, decision.at, given_back)
            assert sum(slot.num_tokens for slot in state.slots) == before - given_back
            assert state.num_tokens == before - given_back
    assert refund(state, int(now) + 5, 1000).slots == state.slots


@given(calls)
def test_the_stored_form_is_the_state_and_stays_small(sequence: list[Call]) -> None:
    quota = Quota(requests_per_minute=10**9, tokens_per_minute=10**9, concurrency=10**6)
    state, now = EMPTY, NOW
    for call in sequence:
        now += call.wait
        state, _ = decide(state, Ask(quota, call.gateway, call.num_tokens, call.num_requests), now)
        assert decode_state(encode_state(state)) == state
        assert state.num_requests == sum(slot.num_requests for slot in state.slots)
        assert state.num_tokens == sum(slot.num_tokens for slot in state.slots)
        assert len(state.slots) <= WINDOW_SECONDS + 1
        assert len(encode_state(state)) < 2048


def test_a_charge_beyond_the_limit_is_counted_and_later_asks_wait_for_it() -> None:
    quota = Quota(tokens_per_minute=100)
    state, _ = decide(EMPTY, Ask(quota, "a", 60), NOW)
    state = charge(state, 90, NOW + 1)
    state, decision = decide(state, Ask(quota, "a", 10), NOW + 2)
    assert decision.refused_by is Limit.TOKENS
    assert decision.remaining_tokens == 0
    assert decision.retry_after == pytest.approx(59.0)


def test_an_ask_for_nothing_passes_a_full_window() -> None:
    quota = Quota(tokens_per_minute=100)
    state, _ = decide(EMPTY, Ask(quota, "a", 100), NOW)
    assert decide(state, Ask(quota, "a", 0), NOW)[1].refused_by is None


def test_what_a_gateway_holds_is_forgotten_when_it_has_said_nothing_for_a_lease() -> None:
    quota = Quota(concurrency=1)
    state, _ = decide(EMPTY, Ask(quota, "dead", 0), NOW)
    assert decide(state, Ask(quota, "b", 0), NOW + LEASE_SECONDS)[1].refused_by is Limit.CONCURRENCY
    assert decide(state, Ask(quota, "b", 0), NOW + LEASE_SECONDS + 0.1)[1].refused_by is None


def test_a_refused_ask_takes_nothing() -> None:
    quota = Quota(requests_per_minute=5, tokens_per_minute=10, concurrency=1)
    state, _ = decide(EMPTY, Ask(quota, "a", 4), NOW)
    for ask in (Ask(quota, "a", 7), Ask(quota, "a", 1, 5), Ask(quota, "a", 1)):
        after, decision = decide(state, ask, NOW)
        assert decision.refused_by is not None
        assert after == state


@pytest.mark.parametrize("behind", [0.5, 3.0])
def test_a_clock_that_reads_a_little_earlier_changes_no_decision(behind: float) -> None:
    quota = Quota(requests_per_minute=1)
    state, _ = decide(EMPTY, Ask(quota, "a", 0), NOW)
    _, decision = decide(state, Ask(quota, "b", 0), NOW - behind)
    assert decision.refused_by is Limit.REQUESTS
    assert decision.retry_after == pytest.approx(61.0)


def test_a_clock_that_was_set_back_costs_a_minute_at_the_most() -> None:
    quota = Quota(requests_per_minute=1)
    state, _ = decide(EMPTY, Ask(quota, "a", 0), NOW)
    state, decision = decide(state, Ask(quota, "a", 0), NOW - 3600)
    assert decision.refused_by is Limit.REQUESTS
    assert decide(state, Ask(quota, "a", 0), NOW - 3600 + 61)[1].refused_by is None
