"""Keeps the leases of the pools that this scheduler leads, and claims those that nobody leads. See `claims`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from math import inf
from typing import Final

from sage_actor import ActorContext
from sage_bus import BusEvent, Lease
from sage_core import Conflict, SageError
from sage_scheduler.claims import Claims
from sage_wire import subjects

__all__ = ["Leadership"]

RETRY_SECONDS: Final = 1.0
RENEWALS_PER_LIFE: Final = 3
"""Two renewals may fail before a lease ends."""


@dataclass(slots=True)
class _Held:
    lease: Lease
    expires_at: float


class Leadership:
    """One life of a scheduler. `on_gained(pool, fence)` and `on_lost(pool)` are told of every change, in order.

    A lease ends here no later than at the server: its time is counted from before each renewal was sent.
    """

    def __init__(
        self,
        context: ActorContext,
        *,
        ttl: float,
        on_gained: Callable[[str, int], Awaitable[None]],
        on_lost: Callable[[str], None],
    ) -> None:
        self._context = context
        self._ttl = ttl
        self._on_gained = on_gained
        self._on_lost = on_lost
        self._claims = Claims(context.actor_id)
        self._held: dict[str, _Held] = {}
        self._expires_at = inf
        self._timer: asyncio.TimerHandle | None = None
        self._reconnected = asyncio.Event()
        self._is_watching = False
        self._is_over = False

    def start(self) -> None:
        """Begin; claims are made once it is known who leads what."""
        self._context.control.on_event(self._on_bus_event)
        self._context.spawn(self._watch(), name="watch leases")
        self._context.spawn(self._renew(), name="renew leases")

    async def release(self) -> list[str]:
        """Give every lease up, so that another scheduler takes over at once; return the pools that were led."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        held, self._held = self._held, {}
        await asyncio.gather(*(each.lease.release() for each in held.values()))
        return sorted(held)

    def is_leading(self, pool: str, fence: int) -> bool:
        """True while the lease that has this `fence` is held."""
        held = self._held.get(pool)
        return held is not None and held.lease.fence == fence and held.lease.is_held

    async def give_up(self, pool: str, fence: int) -> None:
        """Release the lease that has this `fence`, as after a loss: `on_lost` is told."""
        if self.is_leading(pool, fence):
            lease = self._held[pool].lease
            self._lose(pool, "it was given up")
            await lease.release()

    def serve(self, ties: Mapping[str, frozenset[str]]) -> None:
        """Lead these pools where nobody does; see `Claims.served`."""
        self._claims.served(ties, self._context.clock.now())
        self._decide()

    def sweep(self, now: float) -> None:
        """End every lease whose time is over. To be called before anything is decided: it costs a comparison."""
        if now < self._expires_at:
            return
        for pool in [pool for pool, held in self._held.items() if now >= held.expires_at]:
            self._lose(pool, "its time to live has passed")

    # -- claiming -----------------------------------------------------------------------------------------

    def _decide(self) -> None:
        if self._is_over or not self._is_watching:
            return
        now = self._context.clock.now()
        for pool in self._claims.due(now):
            self._context.spawn(self._claim(pool), name=f"claim {pool}")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._claims.next_at < inf:
            delay = max(0.0, self._claims.next_at - now)
            self._timer = asyncio.get_running_loop().call_later(delay, self._decide)

    async def _claim(self, pool: str) -> None:
        clock, started = self._context.clock, self._context.clock.now()
        try:
            async with asyncio.timeout(self._ttl):
                lease = await self._context.control.acquire_lease(
                    subjects.pool_lease(pool), self._context.actor_id, ttl=self._ttl
                )
        except (SageError, TimeoutError) as error:
            if not isinstance(error, Conflict) and self._context.control.is_connected:
                self._context.log.warning("lease_not_claimed", pool=pool, reason=_reason(error))
            self._claims.refused(pool, clock.now())
            self._decide()
            return
        if self._is_over:
            await lease.release()
            return
        self._held[pool] = _Held(lease, started + self._ttl)
        self._claims.gained(pool)
        self._note_expiry()
        self._context.log.info("pool_led", pool=pool, fence=lease.fence)
        self._decide()
        await self._on_gained(pool, lease.fence)

    async def _watch(self) -> None:
        """Follow who holds which lease; the end of one is what a standby waits for."""
        while True:
            try:
                bucket = await self._context.control.key_value(subjects.LEASES_BUCKET)
                for entry in (await bucket.list()).values():
                    self._note(entry.key, entry.value)
                self._is_watching = True
                self._decide()
                async with aclosing(bucket.watch()) as changes:
                    async for entry in changes:
                        self._note(entry.key, entry.value)
                        self._decide()
            except SageError as error:
                self._context.log.warning("leases_not_watched", reason=error.message)
            await asyncio.sleep(RETRY_SECONDS)

    def _note(self, lease: str, owner: bytes | None) -> None:
        if not subjects.is_pool_lease(lease):
            return
        if owner is None:
            self._claims.freed(lease, self._context.clock.now())
        else:
            self._claims.held(lease, owner.decode("utf-8", "replace"))

    # -- keeping ------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        while True:
            self._reconnected.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ttl / RENEWALS_PER_LIFE):
                    # A short outage may have left just enough time.
                    await self._reconnected.wait()
            if self._context.control.is_connected:
                await asyncio.gather(*(self._renew_one(pool, held) for pool, held in self._held.items()))
            self.sweep(self._context.clock.now())

    async def _renew_one(self, pool: str, held: _Held) -> None:
        started = self._context.clock.now()
        if self._held.get(pool) is not held:
            return  # lost since it was listed: renewals run side by side, and any event may sweep
        try:
            async with asyncio.timeout(self._ttl / 2):
                await held.lease.renew()
        except Conflict as error:
            if self._held.get(pool) is held:
                self._lose(pool, error.message)
        except (SageError, TimeoutError) as error:
            # It may be renewed in time yet; `sweep` ends it where it is not.
            self._context.log.warning("lease_not_renewed", pool=pool, reason=_reason(error))
        else:
            held.expires_at = started + self._ttl
            self._note_expiry()

    def _lose(self, pool: str, reason: str) -> None:
        del self._held[pool]
        self._note_expiry()
        self._claims.lost(pool, self._context.clock.now())
        self._context.log.warning("pool_lost", pool=pool, reason=reason)
        self._on_lost(pool)
        self._decide()

    def _on_bus_event(self, event: BusEvent, _detail: str) -> None:
        if event is BusEvent.RECONNECTED:
            self._reconnected.set()

    def _note_expiry(self) -> None:
        self._expires_at = min((held.expires_at for held in self._held.values()), default=inf)


def _reason(error: Exception) -> str:
    return str(error) or "no answer in time"
