"""One pool of a policy written in Python: its queue, its instances, and what is where. See placement_policy.py."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

from sage_policy.policy import (
    RECONCILE_AFTER,
    UNLISTED_AFTER,
    Abort,
    Candidate,
    Command,
    Decision,
    Dispatch,
    Instance,
    Shed,
    Submitted,
    Telemetry,
)
from sage_policy.slo import SloClass, targets_of
from sage_policy.split_mix import SplitMix64
from sage_policy.tier_queue import TierQueue

__all__ = ["InstanceView", "PlacementPool", "PlacementRules", "RunningRequest"]

BACKFILL_DEPTH: Final = 16
"""Requests looked at behind one that fits nowhere."""

_BATCH_TIER: Final = 2
_RATE_HALF_LIFE: Final = 10.0
_MIN_RETRY_AFTER, _MAX_RETRY_AFTER = 1.0, 60.0


@dataclass(slots=True)
class RunningRequest:
    """A request on its instance. `request` is None where an earlier scheduler sent it."""

    request: Submitted | None
    dispatched_at: float
    has_first_token: bool = False
    num_tokens: int = 0
    unlisted_since: float | None = None


@dataclass(slots=True)
class InstanceView:
    """An instance, and what was sent there and has not ended. For policies to read; the base keeps it."""

    instance: Instance
    is_open: bool = True
    running: dict[str, RunningRequest] = field(default_factory=dict)
    telemetry: Telemetry | None = None

    @property
    def longest_prompt(self) -> float:
        """Tokens of a prompt that an empty engine takes; executors of whole batches cut what is longer."""
        profile = self.instance.profile
        limit = min(profile.max_context, profile.kv_tokens * (1.0 - profile.watermark))
        return inf if self.instance.is_batched else limit - 1

    @property
    def num_running(self) -> int:
        """How many requests are there."""
        return len(self.running)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of the requests there that have no output yet."""
        return sum(
            flight.request.num_prompt_tokens
            for flight in self.running.values()
            if flight.request is not None and not flight.has_first_token
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, so far, of all requests there."""
        return sum(
            flight.num_tokens + (flight.request.num_prompt_tokens if flight.request is not None else 0)
            for flight in self.running.values()
        )


class PlacementRules(Protocol):
    """What a pool asks its policy; see `PlacementPolicy`."""

    max_queued: int
    classes: dict[str, SloClass]
    random: SplitMix64
    now: float

    def score(self, request: Submitted, instance: InstanceView) -> float: ...  # noqa: D102
    def may_take(self, request: Submitted, instance: InstanceView) -> bool: ...  # noqa: D102
    def key(self, request: Submitted) -> float: ...  # noqa: D102
    def finished(self, request: Submitted, instance: InstanceView, num_tokens: int) -> None: ...  # noqa: D102


@dataclass(slots=True)
class _Queued:
    event: Submitted
    since: float
    is_background: bool


class PlacementPool:
    """One pool: its queue, its instances and what is where. Calls the policy for every choice."""

    def __init__(self, policy: PlacementRules) -> None:
        self.policy = policy
        self.queued: dict[str, _Queued] = {}
        self.deadlines: list[tuple[float, str]] = []  # of all queued, sorted
        self.instances: dict[str, InstanceView] = {}
        self._order = TierQueue()
        self._placed: dict[str, InstanceView] = {}
        self._finish_rate = _Rate()
        self._batches = 0

    # -- events -------------------------------------------------------------------------------------------

    def submit(self, event: Submitted) -> list[Command]:
        """Queue a request that is neither queued nor running here, or refuse it."""
        now, waiting, limit = self.policy.now, len(self.queued), self.policy.max_queued
        if event.deadline <= now:
            return [Shed(event.key, "deadline_exceeded", None, self._decision("budget spent on arrival"))]
        # Only what would have to wait is refused: with a free slot the queue is passed through in this very call.
        if waiting >= limit:
            decision = self._decision(f"{waiting} requests wait already; the limit is {limit}")
            return [Shed(event.key, "overloaded", self._retry_after(), decision)]
        tier = targets_of(event, self.policy.classes).tier
        self.queued[event.key] = _Queued(event, now, tier == _BATCH_TIER or event.priority < 0)
        self._order.push(event.key, tier, event.priority, self.policy.key(event))
        insort(self.deadlines, (event.deadline, event.key))
        return []

    def cancel(self, key: str) -> list[Command]:
        """Shed it while it waits, abort it while it runs."""
        if key in self.queued:
            return [self._shed_queued(key, "cancelled", "cancelled while queued")]
        # The slot is freed by the instance's report, not here: until then the engine still holds the sequence.
        view = self._placed.get(key)
        if view is None:
            return []
        return [Abort(key, view.instance.instance_id, self._decision("cancelled while running"))]

    def finish(self, key: str, num_tokens: int) -> bool:
        """Free the slot; False where the request does not run here."""
        view = self._placed.pop(key, None)
        if view is None:
            return False
        flight = view.running.pop(key)
        self._finish_rate.count(self.policy.now)
        if flight.request is not None:
            self.policy.finished(flight.request, view, num_tokens)
        self._forget_if_closed(view)
        return True

    def progress(self, key: str, num_tokens: int) -> None:
        """Note the output so far of a request that runs here."""
        view = self._placed.get(key)
        if view is not None:
            flight = view.running[key]
            flight.has_first_token = True
            flight.num_tokens = max(flight.num_tokens, num_tokens)

    def instance_up(self, instance: Instance) -> list[Command]:
        """Take an announcement: limits, work of an earlier scheduler, and dispatches that went missing."""
        now = self.policy.now
        view = self.instances.setdefault(instance.instance_id, InstanceView(instance))
        view.instance, view.is_open = instance, True
        for key in instance.in_flight:
            if key in self._placed:
                continue
            # An unknown key is work of an earlier scheduler. A key still queued here was dispatched by it, too.
            queued = self.queued.get(key)
            if queued is not None:
                self._order.remove(key)
                self._unqueue(key)
            view.running[key] = RunningRequest(None if queued is None else queued.event, now)
            self._placed[key] = view
        commands: list[Command] = []
        listed = set(instance.in_flight)
        decision = self._decision(f"instance {instance.instance_id} does not run it")
        for key, flight in list(view.running.items()):
            if key in listed:
                flight.unlisted_since = None
                continue
            if flight.unlisted_since is None:
                flight.unlisted_since = now
            if now - flight.dispatched_at > RECONCILE_AFTER and now - flight.unlisted_since > UNLISTED_AFTER:
                del view.running[key], self._placed[key]
                commands.append(Shed(key, "worker_lost", None, decision))
        return commands

    def instance_down(self, instance_id: str, *, is_lost: bool) -> list[Command]:
        """Use the instance no more; `is_lost`: give up what it ran."""
        view = self.instances.get(instance_id)
        if view is None:
            return []
        view.is_open = False
        commands: list[Command] = []
        if is_lost:
            decision = self._decision(f"instance {instance_id} was lost")
            for key in view.running:
                del self._placed[key]
                commands.append(Shed(key, "worker_lost", None, decision))
            view.running.clear()
        self._forget_if_closed(view)
        return commands

    # -- decisions ----------------------------------------------------------------------------------------

    def pump(self) -> list[Command]:
        """Shed what expired, then dispatch while anything near the head fits somewhere."""
        commands: list[Command] = []
        while self.deadlines and self.deadlines[0][0] <= self.policy.now:
            key = self.deadlines[0][1]
            commands.append(self._shed_queued(key, "deadline_exceeded", "budget ran out in the queue"))
        while found := self._next():
            commands += found
        return commands

    def _next(self) -> list[Command]:
        for key in self._order.first(1 + BACKFILL_DEPTH):
            queued = self.queued[key]
            num_tokens, longest = queued.event.num_prompt_tokens, self._longest_prompt()
            if num_tokens > longest:
                reason = f"its {num_tokens} prompt tokens fit no instance; the largest takes {int(longest)}"
                return [self._shed_queued(key, "context_length_exceeded", reason)]
            view, candidates = self._choose(queued)
            if view is None:
                continue
            if view.instance.is_batched:
                return self._dispatch_batch(view, key, candidates)
            reason = f"lowest score; {view.num_running} of {view.instance.max_in_flight} slots taken"
            return [self._dispatch(view, key, 0, self._decision(reason, queued, candidates))]
        return []

    def _choose(self, queued: _Queued) -> tuple[InstanceView | None, tuple[Candidate, ...]]:
        best: InstanceView | None = None
        lowest, ties = 0.0, 0
        candidates = []
        for view in self.instances.values():
            reason, score = self._blocked(queued, view), 0.0
            if not reason:
                score = self.policy.score(queued.event, view)
                if best is None or score < lowest:
                    best, lowest, ties = view, score, 1
                elif score == lowest:
                    ties += 1
                    best = view if self.policy.random.below(ties) == 0 else best
            candidates.append(Candidate(view.instance.instance_id, score, reason))
        return best, tuple(candidates)

    def _blocked(self, queued: _Queued, view: InstanceView) -> str:
        """Return why the instance cannot take the request now; empty: it can."""
        limit = view.instance.max_in_flight
        if not view.is_open:
            return "draining"
        if view.instance.is_batched and view.running:
            return "busy"
        # Background work never takes the last quarter of the slots, so urgent work need not wait for it to end.
        if view.num_running >= (limit - limit // 4 if queued.is_background else limit):
            return "full"
        if queued.event.num_prompt_tokens > view.longest_prompt:
            return "context"
        return "" if self.policy.may_take(queued.event, view) else "held"

    def _dispatch_batch(
        self, view: InstanceView, head: str, candidates: tuple[Candidate, ...]
    ) -> list[Command]:
        """Fill an idle executor in the order of the queue, up to its items and its padded tokens."""
        self._batches += 1
        members = list(self._batch(view, head))
        reason = f"batch of {len(members)}"
        return [
            self._dispatch(view, key, self._batches, self._decision(reason, self.queued[key], candidates))
            for key in members
        ]

    def _batch(self, view: InstanceView, head: str) -> Iterator[str]:
        profile = view.instance.profile
        most = min(profile.max_sequences, view.instance.max_in_flight)
        longest, items = 0.0, 0
        for key in [head, *(key for key in self._order.first(most) if key != head)][:most]:
            request = self.queued[key].event
            longest = max(longest, request.num_prompt_tokens / request.num_items, 1.0)
            items += request.num_items
            does_fit = longest * items <= profile.max_step_tokens and items <= profile.max_sequences
            if key != head and not (does_fit and self.policy.may_take(request, view)):
                return
            yield key

    def _dispatch(self, view: InstanceView, key: str, batch: int, decision: Decision) -> Dispatch:
        self._order.serve(key)
        view.running[key] = RunningRequest(self._unqueue(key).event, self.policy.now)
        self._placed[key] = view
        return Dispatch(key, view.instance.instance_id, decision, batch)

    def _shed_queued(self, key: str, code: str, reason: str) -> Shed:
        self._order.remove(key)
        queued = self._unqueue(key)
        return Shed(key, code, None, self._decision(reason, queued))

    def _longest_prompt(self) -> float:
        """Return how long a prompt may be for some open instance; infinite where there is none."""
        longest = -1.0
        for view in self.instances.values():
            if view.is_open:
                longest = max(longest, view.longest_prompt)
        return inf if longest < 0 else longest

    def _unqueue(self, key: str) -> _Queued:
        queued = self.queued.pop(key)
        del self.deadlines[bisect_left(self.deadlines, (queued.event.deadline, key))]
        return queued

    def _decision(
        self, reason: str, queued: _Queued | None = None, candidates: tuple[Candidate, ...] = ()
    ) -> Decision:
        waited = 0.0 if queued is None else self.policy.now - queued.since
        return Decision(reason, waited, len(self.queued), candidates)

    def _retry_after(self) -> float:
        rate = self._finish_rate.per_second(self.policy.now)
        wait = len(self.queued) / rate if rate > 0 else _MIN_RETRY_AFTER
        return min(_MAX_RETRY_AFTER, max(_MIN_RETRY_AFTER, wait))

    def _forget_if_closed(self, view: InstanceView) -> None:
        if not view.is_open and not view.running:
            del self.instances[view.instance.instance_id]


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
