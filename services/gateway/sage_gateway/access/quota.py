"""Quotas as a state machine: how much of a key's limits is used, and whether one more request fits. Pure.

The rate is counted in slots of one second over a sliding minute, not by a leaking bucket: a bucket that holds a
minute's worth admits twice the limit in its first minute. Whatever the order of calls, no 60 seconds of the clock see
more than the limit admitted; capacity comes back at most 61 seconds after it was taken, as a slot leaves as a whole.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import msgspec

__all__ = [
    "EMPTY",
    "LEASE_SECONDS",
    "WINDOW_SECONDS",
    "Ask",
    "Decision",
    "Limit",
    "Quota",
    "QuotaState",
    "charge",
    "decide",
    "decode_state",
    "encode_state",
    "hold",
    "refund",
]

WINDOW_SECONDS: Final = 60
LEASE_SECONDS: Final = 15.0
"""What a gateway holds counts for this long after it last said so; then the gateway is taken for dead."""
MAX_BACKWARD_SECONDS: Final = 5
"""Clocks read a little differently; a clock that is further behind was set back, and the state follows it."""
CONCURRENCY_RETRY_SECONDS: Final = 1.0


class Limit(StrEnum):
    """Which limit of a key refused."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"


class Quota(msgspec.Struct, frozen=True):
    """The limits of one key; None: unlimited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """What was admitted in the second `at` of the clock."""

    at: int
    num_requests: int
    num_tokens: int


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """How many requests one gateway has open, as it said at `renewed_at`."""

    gateway: str
    num_held: int
    renewed_at: float


class QuotaState(msgspec.Struct, frozen=True):
    """What a key has used. `slots` ascend, each has something in it; `newest` is the latest second seen.

    The numbers are the sums over the slots, kept so that a decision need not add them up.
    """

    newest: int = 0
    slots: tuple[Slot, ...] = ()
    holders: tuple[Holder, ...] = ()
    num_requests: int = 0
    num_tokens: int = 0


EMPTY: Final = QuotaState()

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(QuotaState)


def encode_state(state: QuotaState) -> bytes:
    """Return `state` as it is stored."""
    return _encoder.encode(state)


def decode_state(payload: bytes) -> QuotaState:
    """Undo `encode_state`. Raises msgspec.DecodeError for what it did not write."""
    return _decoder.decode(payload)


class Ask(msgspec.Struct, frozen=True):
    """Requests that want to start at `gateway`, all or none, reserving `num_tokens` together."""

    quota: Quota
    gateway: str
    num_tokens: int
    num_requests: int = 1


class Decision(msgspec.Struct, frozen=True):
    """The word on one ask, and what its key has left after it; None where the key has no such limit.

    `retry_after`: seconds until the same ask fits, if nobody else asks; None where it never will, being larger than
    the limit. Resets: seconds until the whole limit is free again.
    """

    refused_by: Limit | None
    at: int
    retry_after: float | None = None
    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    reset_requests: float = 0.0
    reset_tokens: float = 0.0


def decide(state: QuotaState, ask: Ask, now: float) -> tuple[QuotaState, Decision]:
    """Admit `ask` if all of it fits now, else refuse it and take nothing. `now`: Unix seconds of the broker."""
    state, now = _advance(state, now)
    refused_by, retry_after = _refusal(state, ask, now)
    if refused_by is None:
        state = _take(state, ask, now)
    quota = ask.quota
    is_metered = quota.tokens_per_minute is not None
    return state, Decision(
        refused_by,
        state.newest,
        retry_after,
        _remaining(state.num_requests, quota.requests_per_minute),
        _remaining(state.num_tokens, quota.tokens_per_minute),
        _until_empty(state, Limit.REQUESTS, now),
        _until_empty(state, Limit.TOKENS, now) if is_metered else 0.0,
    )


def refund(state: QuotaState, at: int, num_tokens: int) -> QuotaState:
    """Give back tokens that were reserved in the second `at`; what has left the window is no longer owed."""
    slots = [
        Slot(slot.at, slot.num_requests, max(0, slot.num_tokens - num_tokens)) if slot.at == at else slot
        for slot in state.slots
    ]
    return _with_slots(state, tuple(slot for slot in slots if slot.num_requests or slot.num_tokens))


def charge(state: QuotaState, num_tokens: int, now: float) -> QuotaState:
    """Count tokens that were used beyond their reservation, even over the limit: then later asks wait for them."""
    state, _ = _advance(state, now)
    return _add(state, 0, num_tokens) if num_tokens else state


def hold(state: QuotaState, gateway: str, num_held: int, now: float) -> QuotaState:
    """Say how many requests `gateway` has open now. A number, not a change: saying it again repairs what was lost."""
    state, now = _advance(state, now)
    others = tuple(holder for holder in state.holders if holder.gateway != gateway)
    mine = (Holder(gateway, num_held, now),) if num_held > 0 else ()
    return _with_holders(state, others + mine)


def _advance(state: QuotaState, now: float) -> tuple[QuotaState, float]:
    """Bring `state` to `now`, or `now` to the state where the clock reads a little earlier than it did before."""
    second = math.floor(now)
    if second != state.newest:
        behind = state.newest - second
        if behind > MAX_BACKWARD_SECONDS:
            state = _shift(state, -behind)
        elif behind > 0:
            now = float(state.newest)
        else:
            state = _move(state, second)
    if any(now - holder.renewed_at > LEASE_SECONDS for holder in state.holders):
        alive = tuple(holder for holder in state.holders if now - holder.renewed_at <= LEASE_SECONDS)
        state = _with_holders(state, alive)
    return state, now


def _move(state: QuotaState, second: int) -> QuotaState:
    """Go on to `second`: what is older than a window leaves."""
    oldest = second - WINDOW_SECONDS
    moved = QuotaState(second, state.slots, state.holders, state.num_requests, state.num_tokens)
    if not state.slots or state.slots[0].at >= oldest:
        return moved
    return _with_slots(moved, tuple(slot for slot in state.slots if slot.at >= oldest))


def _shift(state: QuotaState, seconds: int) -> QuotaState:
    slots = tuple(Slot(slot.at + seconds, slot.num_requests, slot.num_tokens) for slot in state.slots)
    holders = tuple(
        Holder(holder.gateway, holder.num_held, holder.renewed_at + seconds) for holder in state.holders
    )
    return QuotaState(state.newest + seconds, slots, holders, state.num_requests, state.num_tokens)


def _with_slots(state: QuotaState, slots: tuple[Slot, ...]) -> QuotaState:
    num_requests = sum(slot.num_requests for slot in slots)
    num_tokens = sum(slot.num_tokens for slot in slots)
    return QuotaState(state.newest, slots, state.holders, num_requests, num_tokens)


def _with_holders(state: QuotaState, holders: tuple[Holder, ...]) -> QuotaState:
    return QuotaState(state.newest, state.slots, holders, state.num_requests, state.num_tokens)


def _refusal(state: QuotaState, ask: Ask, now: float) -> tuple[Limit | None, float | None]:
    """Return what refuses `ask`, the limit that does so longest, and the seconds until it fits."""
    quota = ask.quota
    refused_by: Limit | None = None
    retry_after: float | None = None
    if _exceeds(state.num_requests, ask.num_requests, quota.requests_per_minute):
        refused_by = Limit.REQUESTS
        retry_after = _until_free(state, ask.num_requests, quota.requests_per_minute, Limit.REQUESTS, now)
        if retry_after is None:
            return refused_by, None
    if _exceeds(state.num_tokens, ask.num_tokens, quota.tokens_per_minute):
        wait = _until_free(state, ask.num_tokens, quota.tokens_per_minute, Limit.TOKENS, now)
        if wait is None or retry_after is None or wait > retry_after:
            return Limit.TOKENS, wait
    if refused_by is not None or quota.concurrency is None:
        return refused_by, retry_after
    if ask.num_requests > quota.concurrency:
        return Limit.CONCURRENCY, None
    num_held = sum(holder.num_held for holder in state.holders)
    if _exceeds(num_held, ask.num_requests, quota.concurrency):
        return Limit.CONCURRENCY, CONCURRENCY_RETRY_SECONDS
    return None, None


def _take(state: QuotaState, ask: Ask, now: float) -> QuotaState:
    state = _add(state, ask.num_requests, ask.num_tokens)
    if ask.quota.concurrency is None:
        return state
    num_held = sum(holder.num_held for holder in state.holders if holder.gateway == ask.gateway)
    return hold(state, ask.gateway, num_held + ask.num_requests, now)


def _add(state: QuotaState, num_requests: int, num_tokens: int) -> QuotaState:
    slots = state.slots
    if slots and slots[-1].at == state.newest:
        last = slots[-1]
        slots = (*slots[:-1], Slot(last.at, last.num_requests + num_requests, last.num_tokens + num_tokens))
    else:
        slots = (*slots, Slot(state.newest, num_requests, num_tokens))
    return QuotaState(
        state.newest, slots, state.holders, state.num_requests + num_requests, state.num_tokens + num_tokens
    )


def _exceeds(used: int, asked: int, limit: int | None) -> bool:
    return limit is not None and asked > 0 and used + asked > limit


def _remaining(used: int, limit: int | None) -> int | None:
    return None if limit is None else max(0, limit - used)


def _count(slot: Slot, limit: Limit) -> int:
    return slot.num_requests if limit is Limit.REQUESTS else slot.num_tokens


def _until_free(state: QuotaState, asked: int, maximum: int | None, limit: Limit, now: float) -> float | None:
    """Return the seconds until enough slots have left for `asked` to fit; None where it is larger than the limit."""
    if maximum is None or asked > maximum:
        return None
    used = state.num_requests if limit is Limit.REQUESTS else state.num_tokens
    for slot in state.slots:
        used -= _count(slot, limit)
        if used + asked <= maximum:
            return _leaves_in(slot, now)
    return 0.0


def _until_empty(state: QuotaState, limit: Limit, now: float) -> float:
    for slot in reversed(state.slots):
        if _count(slot, limit):
            return _leaves_in(slot, now)
    return 0.0


def _leaves_in(slot: Slot, now: float) -> float:
    return slot.at + WINDOW_SECONDS + 1 - now
