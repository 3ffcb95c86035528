"""Who is there: announcements turned into up, changed and down. `RosterState` decides; `Roster` listens."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec

from sage_bus.bus import Bus, BusEvent, Received, Subscription
from sage_core import BadRequest, Clock, SageError, SystemClock
from sage_telemetry import get_logger
from sage_wire import decode, encode, subjects
from sage_wire.messages import Announcement, Discover

__all__ = ["MISSED_INTERVALS", "ChangeKind", "Roster", "RosterChange", "RosterState"]

MISSED_INTERVALS: Final = 3
MAX_INTERVAL_MS: Final = 60_000
"""A peer cannot make itself immortal by announcing a huge interval."""
PROOF_SECONDS: Final = 1.0
SLOW_PROOF_SECONDS: Final = 0.25
log = get_logger()
T = TypeVar("T")


class ChangeKind(enum.StrEnum):
    """What happened to an actor."""

    UP = "up"
    CHANGED = "changed"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class RosterChange:
    """One change. `is_lost` (only with DOWN): it fell silent or began anew, so what it held is gone.

    An actor that is up need not take work: see `announcement.state`.
    """

    kind: ChangeKind
    announcement: Announcement
    is_lost: bool = False


@dataclass(slots=True)
class _Entry:
    announcement: Announcement
    seen_at: float
    replaced: frozenset[str] = field(default_factory=frozenset)
    """Epochs of this id that came before; what they still say arrived late."""

    @property
    def expires_at(self) -> float:
        interval_ms = min(self.announcement.interval_ms, MAX_INTERVAL_MS)
        return self.seen_at + MISSED_INTERVALS * interval_ms / 1000


class RosterState:
    """The pure core. Per id, changes always read up, changed*, down, up, …; `now` never goes back."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    @property
    def actors(self) -> dict[str, Announcement]:
        """The last announcement of everybody present, by id."""
        return {actor_id: entry.announcement for actor_id, entry in self._entries.items()}

    @property
    def next_expiry(self) -> float | None:
        """When the first actor will be lost unless it announces; None where nobody is present."""
        return min((entry.expires_at for entry in self._entries.values()), default=None)

    def handle(self, announcement: Announcement, now: float) -> list[RosterChange]:
        """Take one announcement. A new epoch of a known id is the loss of the old life and the start of another."""
        actor_id = announcement.actor_id
        entry = self._entries.get(actor_id)
        if entry is None:
            if announcement.state == "stopped":
                return []
            self._entries[actor_id] = _Entry(announcement, now)
            return [RosterChange(ChangeKind.UP, announcement)]
        known = entry.announcement
        if announcement.epoch in entry.replaced:
            return []
        if announcement.epoch != known.epoch:
            if announcement.state == "stopped":
                del self._entries[actor_id]
                return [RosterChange(ChangeKind.DOWN, known, is_lost=True)]
            self._entries[actor_id] = _Entry(announcement, now, entry.replaced | {known.epoch})
            return [
                RosterChange(ChangeKind.DOWN, known, is_lost=True),
                RosterChange(ChangeKind.UP, announcement),
            ]
        if announcement.sequence <= known.sequence:
            return []
        if announcement.state == "stopped":
            del self._entries[actor_id]
            return [RosterChange(ChangeKind.DOWN, announcement)]
        entry.announcement, entry.seen_at = announcement, now
        if _content(announcement) == _content(known):
            return []
        return [RosterChange(ChangeKind.CHANGED, announcement)]

    def is_latest(self, announcement: Announcement) -> bool:
        """True where `announcement` is the one last taken in of its actor, not one that was refused as old."""
        entry = self._entries.get(announcement.actor_id)
        return entry is not None and entry.announcement is announcement

    def expire(self, now: float) -> list[RosterChange]:
        """Drop whoever missed three intervals."""
        lost = [entry.announcement for entry in self._entries.values() if now >= entry.expires_at]
        for announcement in lost:
            del self._entries[announcement.actor_id]
        return [RosterChange(ChangeKind.DOWN, announcement, is_lost=True) for announcement in lost]

    def is_anyone_overdue(self, now: float) -> bool:
        """True if `expire` would drop somebody."""
        return any(now >= entry.expires_at for entry in self._entries.values())

    def resume(self, now: float) -> None:
        """Give everybody another three intervals: we, not they, were away."""
        for entry in self._entries.values():
            entry.seen_at = now


def _content(announcement: Announcement) -> Announcement:
    return msgspec.structs.replace(announcement, sequence=0, started_s_ago=0.0)


class Roster:
    """Follows the announcements on one bus (the control connection) and tells listeners of changes.

    Subscribe listeners before `start` to hear of everybody. While the bus is disconnected nobody expires;
    after a reconnect everybody is asked to announce.
    """

    def __init__(self, bus: Bus, clock: Clock | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self._state = RosterState()
        self._listeners: list[Callable[[RosterChange], None]] = []
        self._followers: list[Callable[[Announcement], None]] = []
        self._subscription: Subscription | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._proof: asyncio.Task[None] | None = None
        self._is_away = False

    @property
    def actors(self) -> Mapping[str, Announcement]:
        """The last announcement of everybody present, by id."""
        return MappingProxyType(self._state.actors)

    def subscribe(self, listener: Callable[[RosterChange], None]) -> Callable[[], None]:
        """Call `listener` for every change from now on, in order, from the event loop; returns what ends it."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def follow(self, follower: Callable[[Announcement], None]) -> None:
        """Call `follower` with every announcement of somebody present from now on, news in it or not, in order.

        The changes it made are told first.
        """
        self._followers.append(follower)

    async def start(self) -> None:
        """Listen, and ask everybody to announce. Answers come within a round trip, not before this returns."""
        self._bus.on_event(self._bus_event)
        self._subscription = await self._bus.subscribe(subjects.ALL_ANNOUNCEMENTS, self._received)
        self._discover()

    async def stop(self) -> None:
        """Stop listening. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._proof is not None:
            self._proof.cancel()
            self._proof = None
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    def _received(self, received: Received) -> None:
        try:
            announcement = decode(Announcement, received.payload)
        except BadRequest as error:
            log.warning("announcement_refused", subject=received.subject, error=error.message)
            return
        if received.subject != subjects.announce(announcement.kind, announcement.actor_id):
            # Rights are given by subject: nobody may speak for another.
            log.warning("announcement_refused", subject=received.subject, actor_id=announcement.actor_id)
            return
        self._tell(self._state.handle(announcement, self._clock.now()))
        if self._followers and self._state.is_latest(announcement):
            for follower in self._followers:
                _call(follower, announcement, announcement.actor_id)
        if self._timer is None:
            self._set_timer()

    def _expire(self, due: float) -> None:
        self._timer = None
        now = self._clock.now()
        if self._is_away:
            return
        if now - due > 1.0:
            # Our own loop was stuck: the announcements of that time are still in the queue behind this timer.
            self._state.resume(now)
        if not self._state.is_anyone_overdue(now):
            self._set_timer()
            return
        # Silence may be ours: a frozen server says nothing, and the connection notices that only seconds later.
        self._proof = asyncio.get_running_loop().create_task(self._expire_if_heard(), name="roster proof")

    async def _expire_if_heard(self) -> None:
        """Drop who is overdue once a message of ours has come back through the server; else give all more time."""
        try:
            is_heard = await self._bus.round_trip(PROOF_SECONDS) < SLOW_PROOF_SECONDS
        except SageError:
            is_heard = False
        self._proof = None
        if not is_heard:
            # Where the server has just come back, the others' announcements may still be behind ours.
            log.warning("roster_was_deaf")
            self._state.resume(self._clock.now())
        if not self._is_away:
            self._tell(self._state.expire(self._clock.now()))
            self._set_timer()

    def _set_timer(self) -> None:
        due = self._state.next_expiry
        if due is None or self._subscription is None or self._timer is not None or self._proof is not None:
            return
        wait = max(0.01, due - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(wait, self._expire, due)

    def _bus_event(self, event: BusEvent, _detail: str) -> None:
        if self._subscription is None:
            return
        if event is BusEvent.DISCONNECTED:
            self._is_away = True
        elif event is BusEvent.RECONNECTED:
            self._is_away = False
            self._state.resume(self._clock.now())
            self._discover()
            if self._timer is None:
                self._set_timer()

    def _discover(self) -> None:
        try:
            self._bus.publish(subjects.every("discover"), encode(Discover()))
        except SageError as error:
            log.warning("discover_lost", error=error.message)

    def _tell(self, changes: list[RosterChange]) -> None:
        for change in changes:
            for listener in list(self._listeners):
                _call(listener, change, change.announcement.actor_id)


def _call(listener: Callable[[T], None], news: T, actor_id: str) -> None:
    try:
        listener(news)
    except Exception as error:  # one listener's bug must not cost the others the news
        log.error("roster_listener_failed", actor_id=actor_id, exc_info=error)
