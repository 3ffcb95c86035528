"""A call as its handler sees it, and the outgoing side: ask with a budget, tell, cancel."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar

from sage_bus.bus import Bus
from sage_core import Budget, Clock, DeadlineExceeded, SageError
from sage_telemetry import current_traceparent
from sage_wire import CallHeaders, decode, encode
from sage_wire.headers import CANCEL, ERROR
from sage_wire.messages import Message, WireError

__all__ = ["Call", "Caller", "current_call", "enter_call"]

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of the message being handled. `call_id` is empty where the caller gave none."""

    subject: str
    call_id: str
    budget: Budget
    traceparent: str | None


_current: ContextVar[Call | None] = ContextVar("sage_call", default=None)
enter_call: Final = _current.set


def current_call() -> Call:
    """Return the call this code runs for. Raises RuntimeError outside a handler (spawned tasks have none)."""
    call = _current.get()
    if call is None:
        raise RuntimeError("current_call() is only known inside a handler")
    return call


class Caller:
    """Makes calls. Everything asked from inside a handler ends with the budget of the call being handled."""

    def __init__(self, prefix: str, clock: Clock) -> None:
        self._prefix = prefix
        self._clock = clock
        self._num_calls = 0

    async def ask(
        self, bus: Bus, subject: str, message: Message, reply_type: type[M], budget: Budget | float
    ) -> M:
        """See `ActorContext.ask`."""
        limit = self._limit(budget)
        remaining = limit.remaining
        if remaining <= 0:
            raise DeadlineExceeded(f"no budget is left to ask {subject}")
        self._num_calls += 1
        call_id = f"{self._prefix}-{self._num_calls}"
        headers = CallHeaders(
            call_id=call_id, budget_ms=max(1, int(remaining * 1000)), traceparent=current_traceparent()
        )
        try:
            received = await bus.request(
                subject, encode(message), timeout=remaining, headers=headers.encode()
            )
        except asyncio.CancelledError:
            self._cancel(bus, subject, call_id)
            raise
        if ERROR in received.headers:
            raise decode(WireError, received.payload).raised()
        return decode(reply_type, received.payload)

    def tell(self, bus: Bus, subject: str, message: Message, budget: Budget | float | None) -> None:
        """See `ActorContext.tell`."""
        budget_ms = None if budget is None else int(self._limit(budget).remaining * 1000)
        headers = CallHeaders(budget_ms=budget_ms, traceparent=current_traceparent())
        bus.publish(subject, encode(message), headers.encode())

    def _limit(self, budget: Budget | float) -> Budget:
        limit = budget if isinstance(budget, Budget) else Budget.of(budget, self._clock)
        outer = _current.get()
        return limit if outer is None else limit.capped(outer.budget.remaining)

    def _cancel(self, bus: Bus, subject: str, call_id: str) -> None:
        try:
            bus.publish(subject, b"", {CANCEL: call_id})
        except SageError:
            # The callee's budget ends the call instead.
            return
