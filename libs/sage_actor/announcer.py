"""Presence on the bus: at once on every change, and once per interval so that silence can be noticed."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from importlib import metadata

from sage_actor.actor import Presence
from sage_bus.bus import Bus
from sage_core import Clock, SageError
from sage_telemetry import get_logger
from sage_wire import encode, subjects
from sage_wire.messages import Announcement

__all__ = ["Announcer", "installed_version"]

log = get_logger()


class Announcer:
    """Publishes announcements of one process. `state`, `epoch`, `presence` and `failed` are set by the runtime.

    `failed` hears of an announcement that can never be sent as it is: a bug of the actor that made it.
    """

    def __init__(self, *, actor_id: str, kind: str, bus: Bus, interval: float, clock: Clock) -> None:
        self.state = "starting"
        self.epoch = ""
        self.presence: Callable[[], Presence] = Presence
        self.failed: Callable[[Exception], None] | None = None
        self._actor_id = actor_id
        self._kind = kind
        self._bus = bus
        self._interval = interval
        self._clock = clock
        self._started_at = clock.now()
        self._sequence = 0
        self._host = socket.gethostname()
        self._version = installed_version()
        self._wake = asyncio.Event()

    def announce(self) -> None:
        """Announce in the next turn of the event loop, once however often this is called."""
        self._wake.set()

    def announce_now(self) -> None:
        """Announce before returning. While disconnected nothing is queued: old presence is worth nothing."""
        if not self._bus.is_connected:
            return
        presence = self.presence()
        self._sequence += 1
        announcement = Announcement(
            actor_id=self._actor_id,
            kind=self._kind,
            epoch=self.epoch,
            sequence=self._sequence,
            state=self.state,
            version=self._version,
            host=self._host,
            pid=os.getpid(),
            interval_ms=max(1, int(self._interval * 1000)),
            models=list(presence.models),
            max_in_flight=presence.max_in_flight,
            num_in_flight=presence.num_in_flight,
            num_queued=presence.num_queued,
            in_flight=list(presence.in_flight),
            health=presence.health,
            started_s_ago=round(self._clock.now() - self._started_at, 3),
            num_tokens=list(presence.num_tokens),
            telemetry=list(presence.telemetry),
            leads=list(presence.leads),
        )
        try:
            self._bus.publish(subjects.announce(self._kind, self._actor_id), encode(announcement))
        except (
            Exception
        ) as error:  # whatever it holds: an actor that nobody hears of must not go on in silence
            if isinstance(error, SageError) and error.retryable:
                log.warning("announcement_lost", error=error.message)
                return
            log.error("announcement_failed", state=self.state, exc_info=error)
            if self.failed is not None:
                self.failed(error)

    async def run(self) -> None:
        """Announce until cancelled. What `presence` raises ends it."""
        while True:
            self._wake.clear()
            self.announce_now()
            try:
                async with asyncio.timeout(self._interval):
                    await self._wake.wait()
            except TimeoutError:
                continue


def installed_version() -> str:
    """Return the version of the installed distribution, `0` in a bare checkout."""
    try:
        return metadata.version("sage-serve")
    except metadata.PackageNotFoundError:
        return "0"
