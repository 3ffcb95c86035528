"""What the gateway is serving now, by id: the ledger behind cancel, drain and the limit on concurrency."""

from __future__ import annotations

from typing import Protocol

from sage_core import Overloaded, Unavailable
from sage_gateway.metrics import METERS

__all__ = ["InFlight", "Served"]

_RETRY_SECONDS = 1.0


class Served(Protocol):
    """One admitted request, as it is found by its id."""

    @property
    def request_id(self) -> str:
        """Ours."""
        ...

    @property
    def shown_id(self) -> str:
        """The client's own where it sent one."""
        ...

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    def cancel(self, reason: str) -> None:
        """End all of it, wherever it is. Idempotent."""
        ...


class InFlight:
    """Admits at most `max_in_flight` requests, and finds them by id."""

    def __init__(self, max_in_flight: int) -> None:
        self._max = max_in_flight
        self._requests: dict[str, Served] = {}
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._requests)

    def admit(self, request: Served) -> None:
        """Hold `request` until `release`. Raises Overloaded at the limit and Unavailable while draining."""
        if self.is_draining:
            raise Unavailable("this gateway is shutting down; try again", retry_after=_RETRY_SECONDS)
        if len(self._requests) >= self._max:
            raise Overloaded(
                f"the gateway serves {self._max} requests, its limit; try again", retry_after=_RETRY_SECONDS
            )
        self._requests[request.request_id] = request
        METERS.num_in_flight = len(self._requests)

    def release(self, request: Served) -> None:
        """Forget `request`. Idempotent."""
        if self._requests.pop(request.request_id, None) is not None:
            METERS.num_in_flight = len(self._requests)

    def find(self, request_id: str, tenant: str) -> list[Served]:
        """Return the caller's requests with this id, ours or the one it gave itself."""
        request = self._requests.get(request_id)
        if request is not None and request.tenant == tenant:
            return [request]
        return [
            request
            for request in self._requests.values()
            if request.shown_id == request_id and request.tenant == tenant
        ]
