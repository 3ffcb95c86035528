"""One key's quota as one gateway keeps it: asks are gathered, decided together, and stored by compare-and-set.

    admit ──► waiting ──┐                          ┌─ Conflict: another gateway was first; read, decide again
                        ├─► round: decide all ──► write ──► tell everyone
    settle ─► unsettled ┘    (one in flight)       └─ no answer in time: refuse everyone with 503

So a key costs one write per round trip and gateway however many requests it sends, and nothing while it sends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from sage_core import BusUnavailable, Clock, Conflict, SageError
from sage_gateway.access import quota
from sage_gateway.access.quota import Ask, Decision, Quota
from sage_gateway.access.quota_store import QuotaStore, Versioned
from sage_gateway.access.rate_limits import quota_refused, quota_unavailable, rate_limit_headers
from sage_gateway.errors import HttpRefused
from sage_telemetry import get_logger

__all__ = ["Granted", "KeyLedger", "OnDecision"]

RENEW_SECONDS: Final = quota.LEASE_SECONDS / 3
"""How often a gateway with open requests says so: twice may be lost before it is taken for dead."""

log = get_logger()


@dataclass(eq=False, slots=True)
class Granted:
    """A request that was admitted under a quota; ended once, by `Gate.settle` or `Gate.release`.

    `headers` go into the response. `at` is the second of the broker's clock that it was counted in.
    """

    key_name: str
    quota: Quota
    num_tokens: int
    at: int
    headers: tuple[tuple[bytes, bytes], ...]
    is_ended: bool = False


OnDecision = Callable[[Granted | HttpRefused], None]


class _Waiting(msgspec.Struct, frozen=True):
    ask: Ask
    on_decision: OnDecision
    deadline: float


@dataclass(slots=True)
class _Unsettled:
    """What ended requests still have to tell: refunds by the second they were reserved in, and charges."""

    refunds: dict[int, int] = field(default_factory=dict)
    num_charged: int = 0

    def __bool__(self) -> bool:
        return bool(self.refunds or self.num_charged)


class KeyLedger:
    """Decides about one key. Callbacks run from the event loop, each exactly once, in the order of asking."""

    def __init__(
        self,
        key_name: str,
        store: QuotaStore,
        *,
        clock: Clock,
        timeout: float,
        renew_interval: float = RENEW_SECONDS,
    ) -> None:
        self._name = key_name
        self._store = store
        self._clock = clock
        self._timeout = timeout
        self._renew_interval = renew_interval
        self._waiting: list[_Waiting] = []
        self._unsettled = _Unsettled()
        self._num_held = 0
        self._num_held_stored: int | None = 0
        self._is_renewal_due = False
        self._is_closed = False
        self._cached: Versioned | None = None
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._has_tried_write = False

    @property
    def is_quiet(self) -> bool:
        """True where nothing waits and nothing is being written; requests may be open."""
        return self._task is None

    def ask(self, quota: Quota, num_tokens: int, on_decision: OnDecision) -> None:
        """Decide about a request soon; `on_decision` hears it within the timeout."""
        asked = Ask(quota, self._store.gateway, num_tokens)
        self._waiting.append(_Waiting(asked, on_decision, self._clock.now() + self._timeout))
        self._wake()

    def end(self, granted: Granted, num_tokens: int) -> None:
        """Count what was really used. Idempotent."""
        if granted.is_ended or self._is_closed:
            return
        granted.is_ended = True
        if granted.quota.concurrency is not None:
            self._num_held -= 1
        if granted.quota.tokens_per_minute is not None:
            surplus = num_tokens - granted.num_tokens
            if surplus < 0:
                refunds = self._unsettled.refunds
                refunds[granted.at] = refunds.get(granted.at, 0) - surplus
            else:
                self._unsettled.num_charged += surplus
        self._wake()

    async def close(self, timeout: float) -> None:
        """Give back what this gateway holds, as far as the broker answers within `timeout`. Nothing is told after."""
        if self._renewal is not None:
            self._renewal.cancel()
        self._is_closed = True
        self._num_held = 0
        self._wake()
        task = self._task
        if task is None:
            return
        await asyncio.wait({task}, timeout=timeout)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})

    def _wake(self) -> None:
        if self._task is None and self._has_news():
            # It starts in the loop's next turn, so all that is asked in this one goes out together.
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"quota of {self._name}")

    def _has_news(self) -> bool:
        return bool(self._waiting or self._unsettled or self._is_hold_due())

    def _is_hold_due(self) -> bool:
        return self._is_renewal_due or self._num_held != self._num_held_stored

    async def _run(self) -> None:
        try:
            while self._has_news():
                if not await self._round():
                    break
        finally:
            self._task = None
            self._plan_renewal()

    async def _round(self) -> bool:
        """Decide about all that waits; return False where the broker gave no answer and everyone was refused."""
        asks, self._waiting = self._waiting, []
        unsettled, self._unsettled = self._unsettled, _Unsettled()
        deadline = min((waiting.deadline for waiting in asks), default=self._clock.now() + self._timeout)
        self._has_tried_write = False
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.now())):
                decisions = await self._commit(asks, unsettled)
        except (SageError, TimeoutError) as error:
            self._fail(asks, unsettled, error)
            return False
        for waiting, decision in zip(asks, decisions, strict=True):
            self._tell(waiting, decision)
        return True

    async def _commit(self, asks: list[_Waiting], unsettled: _Unsettled) -> list[Decision]:
        try:
            return await self._decide_and_write(asks, unsettled)
        except BusUnavailable:
            # The server may have started again without the bucket: make it anew, once.
            self._doubt(asks, unsettled)
            return await self._decide_and_write(asks, unsettled)

    async def _decide_and_write(self, asks: list[_Waiting], unsettled: _Unsettled) -> list[Decision]:
        await self._store.open()
        current, is_fresh = self._cached, False
        while True:
            if current is None:
                current, is_fresh = await self._store.read(self._name), True
            num_held, is_hold_due, now = self._num_held, self._is_hold_due(), self._store.now()
            state = current.state
            if num_held or is_hold_due:
                state = quota.hold(state, self._store.gateway, num_held, now)
            for at, num_tokens in unsettled.refunds.items():
                state = quota.refund(state, at, num_tokens)
            if unsettled.num_charged:
                state = quota.charge(state, unsettled.num_charged, now)
            decisions = []
            for waiting in asks:
                state, decision = quota.decide(state, waiting.ask, now)
                decisions.append(decision)
            admitted = [
                waiting.ask for waiting, d in zip(asks, decisions, strict=True) if d.refused_by is None
            ]
            if not (admitted or unsettled or is_hold_due):
                if is_fresh:
                    self._cached = current
                    return decisions
                current = None  # refused by what may be stale: others may have given something back
                continue
            self._has_tried_write = True
            try:
                self._cached = await self._store.write(self._name, state, current.revision)
            except Conflict:
                self._has_tried_write = False
                current = None
                continue
            num_taken = sum(ask.num_requests for ask in admitted if ask.quota.concurrency is not None)
            self._num_held += num_taken
            self._num_held_stored = num_held + num_taken
            self._is_renewal_due = False
            return decisions

    def _tell(self, waiting: _Waiting, decision: Decision) -> None:
        ask = waiting.ask
        answer: Granted | HttpRefused
        if decision.refused_by is not None:
            answer = quota_refused(ask, decision)
        else:
            answer = Granted(
                self._name,
                ask.quota,
                ask.num_tokens,
                decision.at,
                rate_limit_headers(ask.quota, decision),
            )
        # Through the loop: what a callback raises is its own, and must not cost others their answer.
        asyncio.get_running_loop().call_soon(waiting.on_decision, answer)

    def _fail(self, asks: list[_Waiting], unsettled: _Unsettled, error: Exception) -> None:
        """Refuse all that waits: what came meanwhile would wait for the same silent broker, beyond its time."""
        reason = error.message if isinstance(error, SageError) else f"no answer within {self._timeout:g} s"
        log.warning("quota_undecided", key=self._name, num_asks=len(asks) + len(self._waiting), error=reason)
        self._doubt(asks, unsettled)
        for at, num_tokens in unsettled.refunds.items():
            self._unsettled.refunds[at] = self._unsettled.refunds.get(at, 0) + num_tokens
        self._unsettled.num_charged += unsettled.num_charged
        waiting, self._waiting = asks + self._waiting, []
        refusal = quota_unavailable(self._timeout)
        for each in waiting:
            asyncio.get_running_loop().call_soon(each.on_decision, refusal)

    def _doubt(self, asks: list[_Waiting], unsettled: _Unsettled) -> None:
        """Take nothing that is known of the entry for true. A write that was not answered may have taken place.

        Asks and charges that are counted twice then refuse too much, for a minute. A refund that is made twice would
        admit too much, so it is given up. What is held is said again.
        """
        self._store.forget()
        self._cached = None
        if self._has_tried_write:
            unsettled.refunds.clear()
            if any(waiting.ask.quota.concurrency is not None for waiting in asks):
                self._num_held_stored = None

    def _plan_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self._num_held or self._has_news():
            self._renewal = asyncio.get_running_loop().call_later(self._renew_interval, self._renew)

    def _renew(self) -> None:
        self._renewal = None
        self._is_renewal_due = self._num_held > 0
        self._wake()
