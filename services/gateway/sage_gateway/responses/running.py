"""Responses that this gateway is writing now, and how one is ended that another gateway writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from sage_bus import Bus, Received, Subscription
from sage_core import DeadlineExceeded, SageError, Unavailable
from sage_gateway.responses.answer import ResponseAnswer
from sage_gateway.run import Run
from sage_wire import decode, encode, subjects
from sage_wire.messages import CancelledResponse, CancelResponse

__all__ = ["RunningResponses"]

_ANSWER_SECONDS: Final = 0.5
"""How long others have to say that they write a response; only a request for one that nobody writes waits it out."""
_REASON: Final = "cancelled by id"

_encode = msgspec.json.Encoder().encode


class RunningResponses:
    """Responses by tenant and id, from their first event to their last."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._running: dict[tuple[str, str], tuple[Run, ResponseAnswer]] = {}
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Listen for cancels that arrive at other gateways. Raises what `Bus.subscribe` raises."""
        self._subscription = await self._bus.subscribe(subjects.RESPONSES_CANCEL, self._on_cancel)

    async def close(self) -> None:
        """Listen no more. Idempotent."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    @contextmanager
    def hold(self, tenant: str, response_id: str, run: Run, answer: ResponseAnswer) -> Iterator[None]:
        """Let the response be found for the length of the block."""
        self._running[tenant, response_id] = (run, answer)
        try:
            yield
        finally:
            del self._running[tenant, response_id]

    async def cancel(self, tenant: str, response_id: str) -> bytes | None:
        """End a response, here or at another gateway; return its body as it is then, None where nobody writes it."""
        body = self._cancel_here(tenant, response_id)
        if body is not None:
            return body
        message = CancelResponse(tenant=tenant, response_id=response_id)
        try:
            reply = await self._bus.request(
                subjects.RESPONSES_CANCEL, encode(message), timeout=_ANSWER_SECONDS
            )
        except (DeadlineExceeded, Unavailable):
            return None
        return decode(CancelledResponse, reply.payload).response.encode()

    def _cancel_here(self, tenant: str, response_id: str) -> bytes | None:
        found = self._running.get((tenant, response_id))
        if found is None:
            return None
        run, answer = found
        run.cancel(_REASON)
        return _encode(answer.stopped("cancelled"))

    def _on_cancel(self, message: Received) -> None:
        try:
            asked = decode(CancelResponse, message.payload)
        except SageError:
            return  # not for us to judge: whoever sent it gets no answer
        body = self._cancel_here(asked.tenant, asked.response_id)
        if body is not None and message.reply is not None:
            self._bus.publish(message.reply, encode(CancelledResponse(response=body.decode())))
