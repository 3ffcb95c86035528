"""Least outstanding with hold: the instance with the fewest running requests, and a queue above full engines.

The queue is first come first served within a priority. Nothing is pushed to an instance beyond its
`max_in_flight`: work that waits here can still be reordered, cancelled and shed; inside an engine it cannot. Work of
negative priority (batch) never takes the last quarter of the slots, so urgent work need not wait for it to end.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from sage_policy.policy import (
    Abort,
    Cancelled,
    Candidate,
    Command,
    Decision,
    Dispatch,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceDown,
    InstanceUp,
    SetTimer,
    Shed,
    Started,
    Submitted,
    Timer,
)

__all__ = ["LeastOutstanding"]

RECONCILE_AFTER = 3.0
"""Seconds after which a dispatch that its instance does not list counts as lost, on its way there or back."""

UNLISTED_AFTER = 1.0
"""Seconds for which it must have been missing: the last report of a request may be behind the announcement."""

_RATE_HALF_LIFE = 10.0
_MIN_RETRY_AFTER, _MAX_RETRY_AFTER = 1.0, 60.0


@dataclass(slots=True)
class _Queued:
    event: Submitted
    since: float


@dataclass(slots=True)
class _Slot:
    """One instance: its limit, the keys it runs with the time of their dispatch, and since when it lists some not."""

    max_in_flight: int
    is_open: bool = True
    running: dict[str, float] = field(default_factory=dict)
    unlisted: dict[str, float] = field(default_factory=dict)

    def limit(self, *, is_background: bool) -> int:
        """Return how many may run before no more of this kind is added; one slot is for everybody."""
        if not is_background:
            return self.max_in_flight
        return self.max_in_flight - self.max_in_flight // 4


class LeastOutstanding:
    """See the module. One object schedules one pool."""

    name = "least-outstanding"

    def __init__(self, *, max_queued: int = 1024, seed: int = 0) -> None:
        self._max_queued = max_queued
        self._random = random.Random(seed)
        self._queued: dict[str, _Queued] = {}
        self._order: list[tuple[int, int, str]] = []
        self._deadlines: list[tuple[float, str]] = []
        self._arrivals = 0
        self._instances: dict[str, _Slot] = {}
        self._placed: dict[str, str] = {}
        self._timer_at: float | None = None
        self._finish_rate = _Rate()

    def handle(self, event: Event, now: float) -> list[Command]:
        """See `Policy.handle`."""
        match event:
            case Submitted():
                commands = self._submit(event, now)
            case Cancelled(key):
                commands = self._cancel(key, now)
            case Finished(key):
                self._finish(key, now)
                commands = []
            case InstanceUp(instance):
                commands = self._instance_up(instance, now)
            case InstanceDown(instance_id, _, is_lost):
                commands = self._instance_down(instance_id, is_lost=is_lost)
            case Timer():
                self._timer_at = None
                commands = []
            case Started() | FirstToken():
                return []
        commands += self._shed_expired(now)
        commands += self._dispatch(now)
        self._compact()
        commands += self._arm()
        return commands

    # -- events -------------------------------------------------------------------------------------------

    def _submit(self, event: Submitted, now: float) -> list[Command]:
        if event.key in self._queued or event.key in self._placed:
            return []
        if event.deadline <= now:
            return [
                Shed(event.key, "deadline_exceeded", None, self._decision("budget spent on arrival", 0.0))
            ]
        # Only what would have to wait is refused: with a free slot the queue is passed through in this very call.
        if len(self._queued) >= self._max_queued:
            reason = f"{len(self._queued)} requests wait already; the limit is {self._max_queued}"
            return [Shed(event.key, "overloaded", self._retry_after(now), self._decision(reason, 0.0))]
        self._queued[event.key] = _Queued(event, now)
        self._arrivals += 1
        heapq.heappush(self._order, (-event.priority, self._arrivals, event.key))
        heapq.heappush(self._deadlines, (event.deadline, event.key))
        return []

    def _cancel(self, key: str, now: float) -> list[Command]:
        queued = self._queued.pop(key, None)
        if queued is not None:
            return [
                Shed(key, "cancelled", None, self._decision("cancelled while queued", now - queued.since))
            ]
        instance_id = self._placed.get(key)
        if instance_id is None:
            return []
        # The slot is freed by the instance's report, not here: until then the engine still holds the sequence.
        return [Abort(key, instance_id, self._decision("cancelled while running", 0.0))]

    def _finish(self, key: str, now: float) -> None:
        instance_id = self._placed.pop(key, None)
        if instance_id is not None:
            slot = self._instances[instance_id]
            slot.running.pop(key, None)
            slot.unlisted.pop(key, None)
            self._finish_rate.count(now)
            self._forget_if_closed(instance_id)

    def _instance_up(self, instance: Instance, now: float) -> list[Command]:
        slot = self._instances.setdefault(instance.instance_id, _Slot(instance.max_in_flight))
        slot.max_in_flight, slot.is_open = instance.max_in_flight, True
        listed = set(instance.in_flight)
        for key in listed - self._placed.keys():
            # An unknown key is work of an earlier scheduler. A key still queued here was dispatched by it, too.
            self._queued.pop(key, None)
            slot.running[key] = now
            self._placed[key] = instance.instance_id
        slot.unlisted = {key: slot.unlisted.get(key, now) for key in slot.running if key not in listed}
        decision = self._decision(f"instance {instance.instance_id} does not run it", 0.0)
        commands: list[Command] = []
        for key, unlisted_since in list(slot.unlisted.items()):
            if now - slot.running[key] > RECONCILE_AFTER and now - unlisted_since > UNLISTED_AFTER:
                del slot.running[key], slot.unlisted[key], self._placed[key]
                commands.append(Shed(key, "worker_lost", None, decision))
        return commands

    def _instance_down(self, instance_id: str, *, is_lost: bool) -> list[Command]:
        slot = self._instances.get(instance_id)
        if slot is None:
            return []
        slot.is_open = False
        commands: list[Command] = []
        if is_lost:
            decision = self._decision(f"instance {instance_id} was lost", 0.0)
            for key in slot.running:
                del self._placed[key]
                commands.append(Shed(key, "worker_lost", None, decision))
            slot.running.clear()
            slot.unlisted.clear()
        self._forget_if_closed(instance_id)
        return commands

    # -- decisions ----------------------------------------------------------------------------------------

    def _shed_expired(self, now: float) -> list[Command]:
        commands: list[Command] = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self._queued):
            _, key = heapq.heappop(self._deadlines)
            queued = self._queued.pop(key, None)
            if queued is not None:
                decision = self._decision("budget ran out in the queue", now - queued.since)
                commands.append(Shed(key, "deadline_exceeded", None, decision))
        return commands

    def _dispatch(self, now: float) -> list[Command]:
        commands: list[Command] = []
        while self._order:
            if self._order[0][2] not in self._queued:
                heapq.heappop(self._order)
                continue
            instance_id = self._choose(is_background=self._order[0][0] > 0)
            if instance_id is None:
                break
            _, _, key = heapq.heappop(self._order)
            queued = self._queued.pop(key)
            candidates = self._candidates()
            slot = self._instances[instance_id]
            slot.running[key] = now
            self._placed[key] = instance_id
            reason = f"fewest outstanding: {len(slot.running) - 1} of {slot.max_in_flight}"
            decision = self._decision(reason, now - queued.since, candidates)
            commands.append(Dispatch(key, instance_id, decision))
        return commands

    def _compact(self) -> None:
        """Drop entries of requests that left early, so that cancels in a long queue do not pile up."""
        if len(self._order) > 2 * len(self._queued) + 64:
            self._order = [entry for entry in self._order if entry[2] in self._queued]
            heapq.heapify(self._order)
        if len(self._deadlines) > 2 * len(self._queued) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._queued]
            heapq.heapify(self._deadlines)

    def _choose(self, *, is_background: bool) -> str | None:
        best, best_load, ties = None, 0, 0
        for instance_id, slot in self._instances.items():
            load = len(slot.running)
            if not slot.is_open or load >= slot.limit(is_background=is_background):
                continue
            if best is None or load < best_load:
                best, best_load, ties = instance_id, load, 1
            elif load == best_load:
                ties += 1
                if self._random.random() * ties < 1.0:
                    best = instance_id
        return best

    def _candidates(self) -> tuple[Candidate, ...]:
        found = []
        for instance_id, slot in self._instances.items():
            full = len(slot.running) >= slot.max_in_flight
            reason = "" if slot.is_open and not full else "full" if slot.is_open else "draining"
            found.append(Candidate(instance_id, float(len(slot.running)), reason))
        return tuple(found)

    def _decision(
        self, reason: str, queue_seconds: float, candidates: tuple[Candidate, ...] = ()
    ) -> Decision:
        return Decision(reason, queue_seconds, len(self._queued), candidates)

    def _arm(self) -> list[Command]:
        earliest = self._deadlines[0][0] if self._queued and self._deadlines else None
        if earliest is None or earliest == self._timer_at:
            return []
        self._timer_at = earliest
        return [SetTimer(earliest)]

    def _retry_after(self, now: float) -> float:
        rate = self._finish_rate.per_second(now)
        wait = len(self._queued) / rate if rate > 0 else _MIN_RETRY_AFTER
        return min(_MAX_RETRY_AFTER, max(_MIN_RETRY_AFTER, wait))

    def _forget_if_closed(self, instance_id: str) -> None:
        slot = self._instances[instance_id]
        if not slot.is_open and not slot.running:
            del self._instances[instance_id]


class _Rate:
    """Events per second, exponentially weighted with a half-life of ten seconds."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at: float | None = None

    def count(self, now: float) -> None:
        self._decay(now)
        self._weight += 1.0

    def per_second(self, now: float) -> float:
        self._decay(now)
        return self._weight * 0.6931471805599453 / _RATE_HALF_LIFE

    def _decay(self, now: float) -> None:
        if self._at is not None:
            self._weight *= 0.5 ** ((now - self._at) / _RATE_HALF_LIFE)
        self._at = now
