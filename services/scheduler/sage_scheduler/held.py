"""The requests that a scheduler holds, by attempt, by request and by worker: what a policy must not see of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sage_wire.messages import Submit

__all__ = ["Held", "HeldRequests", "attempt_of", "key_of", "request_id_of"]

CANCEL_MEMORY: Final = 5.0
"""Seconds that a cancel for an unknown request is remembered: it may have overtaken its submit."""
_MAX_CANCELS: Final = 10_000


@dataclass(slots=True)
class Held:
    """An attempt from its submit to its last report. Times are on the desk's clock."""

    submit: Submit
    deadline: float
    since: float
    worker_id: str | None = None
    dispatched_at: float = 0.0
    is_started: bool = False
    """Its worker said that it has it."""
    has_token: bool = False
    """Its worker said that it began to answer."""
    num_tokens: int = 0


class HeldRequests:
    """See the module. Keys are `request_id/attempt`, as in announcements."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._attempts: dict[str, list[str]] = {}
        self._by_worker: dict[str, set[str]] = {}
        self._num_placed = 0
        self._cancelled: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    @property
    def num_queued(self) -> int:
        """Requests not yet given to a worker."""
        return len(self._held) - self._num_placed

    def get(self, key: str) -> Held | None:
        """Return an attempt, None where it is not held."""
        return self._held.get(key)

    def add(self, key: str, held: Held) -> None:
        """Hold an attempt."""
        self._held[key] = held
        self._attempts.setdefault(held.submit.request_id, []).append(key)

    def place(self, key: str, worker_id: str, now: float) -> Held:
        """Note that an attempt was given to a worker."""
        held = self._held[key]
        held.worker_id, held.dispatched_at = worker_id, now
        self._by_worker.setdefault(worker_id, set()).add(key)
        self._num_placed += 1
        return held

    def release(self, key: str) -> Held | None:
        """Let go of an attempt; None where it is not held."""
        held = self._held.pop(key, None)
        if held is None:
            return None
        attempts = self._attempts[held.submit.request_id]
        attempts.remove(key)
        if not attempts:
            del self._attempts[held.submit.request_id]
        if held.worker_id is not None:
            self._num_placed -= 1
            placed = self._by_worker[held.worker_id]
            placed.discard(key)
            if not placed:
                del self._by_worker[held.worker_id]
        return held

    def placed_on(self, worker_id: str) -> Iterable[str]:
        """Return the attempts that were given to a worker and have not ended."""
        return self._by_worker.get(worker_id, ())

    def of_request(self, request_id: str, attempt: int | None) -> list[str]:
        """Return the attempts of a request that are held; only number `attempt`, where it is given."""
        keys = self._attempts.get(request_id, [])
        return [key for key in keys if attempt is None or self._held[key].submit.attempt == attempt]

    def of_pool(self, pool: str) -> list[str]:
        """Return the attempts that are held for a pool, in order of arrival."""
        return [key for key, held in self._held.items() if held.submit.pool == pool]

    def waiting(self) -> list[str]:
        """Return the attempts that no worker was given yet, in order of arrival."""
        return [key for key, held in self._held.items() if held.worker_id is None]

    def remember_cancel(self, request_id: str, now: float) -> None:
        """Remember the cancel of a request that is not here, for a submit that is still behind it."""
        self._cancelled[request_id] = now
        self._forget_cancels(now)

    def was_cancelled(self, request_id: str, now: float) -> bool:
        """True where a cancel came a moment ago."""
        self._forget_cancels(now)
        return request_id in self._cancelled

    def _forget_cancels(self, now: float) -> None:
        while self._cancelled:
            request_id, at = next(iter(self._cancelled.items()))
            if now - at <= CANCEL_MEMORY and len(self._cancelled) <= _MAX_CANCELS:
                return
            del self._cancelled[request_id]


def key_of(request_id: str, attempt: int) -> str:
    """Return the key of an attempt."""
    return f"{request_id}/{attempt}"


def request_id_of(key: str) -> str:
    """Return the request of an attempt."""
    return key.rpartition("/")[0]


def attempt_of(key: str) -> int:
    """Return the number of an attempt; 0 where the key of another's announcement has none."""
    number = key.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0
