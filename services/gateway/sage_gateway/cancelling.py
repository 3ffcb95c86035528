"""Ending requests by id, whichever gateway serves them: processes that share a port, and gateways of other hosts."""

from __future__ import annotations

from typing import Final

from sage_bus import Bus, Received, Subscription
from sage_core import DeadlineExceeded, SageError, Unavailable
from sage_gateway.in_flight import InFlight
from sage_wire import decode, encode, subjects
from sage_wire.messages import CancelledRequest, CancelRequest

__all__ = ["Cancelling"]

_ANSWER_SECONDS: Final = 0.5
"""How long others have to say that they serve a request; only a cancel of one that nobody serves waits it out."""
_REASON: Final = "cancelled by id"


class Cancelling:
    """Cancels requests of one tenant by our id or the client's own. Between `start` and `close`."""

    def __init__(self, bus: Bus, in_flight: InFlight) -> None:
        self._bus = bus
        self._in_flight = in_flight
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for what other gateways are asked to cancel. Raises what `Bus.subscribe` raises."""
        self._subscription = await self._bus.subscribe(subjects.REQUESTS_CANCEL, self._on_cancel)

    async def close(self) -> None:
        """Listen no more. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    async def cancel(self, tenant: str, request_id: str) -> int:
        """End the requests of `tenant` with this id, here or at another gateway; return how many there were."""
        num_requests = self._cancel_here(tenant, request_id)
        if num_requests:
            return num_requests
        message = CancelRequest(tenant=tenant, request_id=request_id)
        try:
            reply = await self._bus.request(
                subjects.REQUESTS_CANCEL, encode(message), timeout=_ANSWER_SECONDS
            )
        except (DeadlineExceeded, Unavailable):
            return 0
        return decode(CancelledRequest, reply.payload).num_requests

    def _cancel_here(self, tenant: str, request_id: str) -> int:
        found = self._in_flight.find(request_id, tenant)
        for request in found:
            request.cancel(_REASON)
        return len(found)

    def _on_cancel(self, message: Received) -> None:
        try:
            asked = decode(CancelRequest, message.payload)
        except SageError:
            return  # not for us to judge: whoever sent it gets no answer
        num_requests = self._cancel_here(asked.tenant, asked.request_id)
        if num_requests and message.reply is not None:
            self._bus.publish(message.reply, encode(CancelledRequest(num_requests=num_requests)))
