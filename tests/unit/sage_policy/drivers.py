"""What the policy tests share: short ways to write events, and a driver that checks every command it is given."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from math import inf, isfinite

from sage_policy import (
    BASELINES,
    LAYERS,
    Abort,
    Cancelled,
    Command,
    Dispatch,
    EngineProfile,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceDown,
    InstanceUp,
    LeastOutstanding,
    Policy,
    PoolClosed,
    ScaleHint,
    SetTimer,
    Shed,
    SloClass,
    Submitted,
    Timer,
    make_policy,
)

POOL = "model"
EPSILON = 1e-9

HYBRID = ("hybrid", *(f"hybrid-{layer}" for layer in LAYERS))
NATIVE = (
    *HYBRID,
    *(name + switches for name in BASELINES for switches in ("", "+hold", "+shed", "+hold+shed")),
    "least-outstanding+window5",
    "hybrid-fair-hold",
)
ALL = (*HYBRID, *BASELINES, "lmetric+hold", "random+shed", "dynamo-cost+hold+shed", "python")
"""Every policy that SAGE has, with some of the switches; `python` is the Python base with `LeastOutstanding` on it."""

RTX4090 = EngineProfile(
    a0=0.0169, a1=4.2e-5, a2=1.49e-7, m0=0.0142, m1=7.7e-5, m2=3.4e-7, m3=5.4e-9, m4=5e-6,
    kv_tokens=41408,
)  # fmt: skip
PRO6000 = EngineProfile(
    a0=0.0112, a1=1.9e-5, a2=8.8e-8, m0=0.0110, m1=2.9e-5, m2=1.6e-7, m3=2.3e-9, m4=1.4e-5,
    max_sequences=128, kv_tokens=530000,
)  # fmt: skip
ENCODER = EngineProfile(m0=0.004, m1=2e-6, m4=1e-4, max_sequences=64, max_step_tokens=16384)


def make(name: str, *, max_queued: int = 1024, seed: int = 0, **options: object) -> Policy:
    if name == "python":
        return LeastOutstanding(max_queued=max_queued, seed=seed)
    classes: dict[str, SloClass] | None = options.pop("classes", None)  # type: ignore[assignment]
    return make_policy(name, max_queued=max_queued, seed=seed, classes=classes, **options)


def submitted(key: str, deadline: float = 100.0, priority: int = 0, **fields: object) -> Submitted:
    return Submitted(**{"key": key, "pool": POOL, "deadline": deadline, "priority": priority, **fields})  # type: ignore[arg-type]


def up(name: str, max_in_flight: int = 1, in_flight: tuple[str, ...] = (), **fields: object) -> InstanceUp:
    spec = {"pool": POOL, "max_in_flight": max_in_flight, "in_flight": in_flight, **fields}
    return InstanceUp(Instance(name, **spec))  # type: ignore[arg-type]


def executor(name: str, profile: EngineProfile = ENCODER, **fields: object) -> InstanceUp:
    """An instance that runs whole batches."""
    return up(name, **{"max_in_flight": 256, "is_batched": True, "profile": profile, **fields})  # type: ignore[arg-type]


def dispatches(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.key, c.instance_id) for c in commands if isinstance(c, Dispatch)]


def sheds(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.key, c.code) for c in commands if isinstance(c, Shed)]


def aborts(commands: list[Command]) -> list[tuple[str, str]]:
    return [(c.key, c.instance_id) for c in commands if isinstance(c, Abort)]


def comparable(commands: list[Command]) -> str:
    """Everything about the commands; NaN equals NaN here."""
    return repr(commands)


@dataclass
class _Worker:
    spec: Instance
    is_open: bool = True
    running: dict[str, int] = field(default_factory=dict)  # key -> batch


class Driver:
    """Gives events to a policy, calls its timers on time, and checks what it commands against its own book.

    Raises AssertionError as soon as a command breaks a promise: requests leave exactly once, slots hold, nothing goes
    to an instance that is draining or absent, batches go to idle executors and keep to their limits, timers lie ahead.
    """

    def __init__(self, policy: Policy, *, max_queued: int | None = None) -> None:
        self.policy = policy
        self.max_queued = max_queued
        self.now = 0.0
        self.timer_at = inf
        self.pools: set[str] = set()
        self.workers: dict[tuple[str, str], _Worker] = {}  # (pool, instance)
        self.waiting: dict[str, Submitted] = {}
        self.since: dict[str, float] = {}
        self.running: dict[str, tuple[str, str]] = {}  # key -> (pool, instance)
        self.served: list[str] = []
        self.shed: dict[str, Shed] = {}
        self.hints: list[ScaleHint] = []

    def at(self, now: float, event: Event) -> list[Command]:
        """Let time pass until `now`, calling the timer when it is due, then give the event."""
        commands = self.pass_until(now)
        return commands + self.give(event)

    def pass_until(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for _ in range(100_000):
            if self.timer_at > now:
                break
            self.now = max(self.now, self.timer_at)
            self.timer_at = inf
            commands += self.give(Timer())
        else:
            raise AssertionError(f"the timer is asked for again and again at {self.now}")
        self.now = max(self.now, now)
        return commands

    def give(self, event: Event) -> list[Command]:
        if not self._must_be_ignored(event):
            self._book(event)
        commands = self.policy.handle(event, self.now)
        batches: dict[tuple[str, int], list[Submitted]] = {}
        for command in commands:
            match command:
                case Dispatch():
                    request = self._dispatched(command)
                    if command.batch:
                        batches.setdefault((command.instance_id, command.batch), []).append(request)
                case Shed():
                    self._shed(command, event)
                case Abort(key, instance_id):
                    assert self.running[key][1] == instance_id
                case SetTimer(at):
                    assert isfinite(at)
                    assert at >= self.now - EPSILON, "a timer in the past"
                    self.timer_at = at
                case ScaleHint(_, num_instances):
                    assert num_instances >= 1
                    self.hints.append(command)
        for (instance_id, _), members in batches.items():
            profile = self.workers[(members[0].pool, instance_id)].spec.profile
            num_items = sum(member.num_items for member in members)
            longest = max(member.num_prompt_tokens / member.num_items for member in members)
            assert len(members) == 1 or num_items <= profile.max_sequences
            assert len(members) == 1 or longest * num_items <= profile.max_step_tokens
        self._check(event)
        return commands

    def _dispatched(self, command: Dispatch) -> Submitted:
        request = self.waiting.pop(command.key, None)
        assert request is not None, f"{command.key} does not wait"
        place = (request.pool, command.instance_id)
        worker = self.workers.get(place)
        assert worker is not None, f"{command.instance_id} is not there"
        assert worker.is_open, f"{command.instance_id} takes no more work"
        worker.running[command.key] = command.batch
        assert len(worker.running) <= worker.spec.max_in_flight, f"{command.instance_id} is full"
        if command.batch:
            assert worker.spec.is_batched
            assert set(worker.running.values()) == {command.batch}, "one batch at a time"
        self.running[command.key] = place
        self.served.append(command.key)
        return request

    def _shed(self, command: Shed, event: Event) -> None:
        key = command.key
        assert key not in self.shed, f"{key} is shed twice"
        assert command.retry_after is None or 0 < command.retry_after <= 60
        if key in self.waiting:
            del self.waiting[key]
        elif key in self.running:
            assert command.code == "worker_lost"
            worker = self.workers.get(self.running.pop(key))
            if worker is not None:
                worker.running.pop(key, None)
        else:
            assert isinstance(event, Submitted), f"{key} is neither queued nor running"
            assert (event.key, command.code) == (key, "overloaded"), "refused, for its pool is unknown"
        self.shed[key] = command

    def _must_be_ignored(self, event: Event) -> bool:
        return isinstance(event, Submitted) and (event.key in self.waiting or event.key in self.running)

    def _book(self, event: Event) -> None:
        match event:
            case Submitted(key, pool):
                self.shed.pop(key, None)
                if pool in self.pools:
                    self.waiting[key] = event
                    self.since[key] = self.now
            case Finished(key):
                place = self.running.pop(key, None)
                if place is not None and place in self.workers:
                    worker = self.workers[place]
                    worker.running.pop(key, None)
                    self._forget_if_closed(place, worker)
            case InstanceUp(instance):
                place = (instance.pool, instance.instance_id)
                self.pools.add(instance.pool)
                worker = self.workers.setdefault(place, _Worker(instance))
                worker.spec, worker.is_open = replace(instance, in_flight=()), True
                for key in instance.in_flight:
                    if key not in self.running:
                        self.waiting.pop(key, None)
                        self.shed.pop(key, None)
                        self.running[key] = place
                        worker.running[key] = 0
            case InstanceDown(instance_id, pool, is_lost):
                worker = self.workers.get((pool, instance_id))
                if worker is not None:
                    worker.is_open = False
                    if is_lost:
                        worker.running.clear()
                    self._forget_if_closed((pool, instance_id), worker)
            case PoolClosed(pool):
                self.pools.discard(pool)
                self.workers = {place: w for place, w in self.workers.items() if place[0] != pool}
                self.waiting = {key: r for key, r in self.waiting.items() if r.pool != pool}
                self.running = {key: place for key, place in self.running.items() if place[0] != pool}

    def _forget_if_closed(self, place: tuple[str, str], worker: _Worker) -> None:
        if not worker.is_open and not worker.running:
            del self.workers[place]

    def _check(self, event: Event) -> None:
        if self.max_queued is not None:
            num_waiting = Counter(request.pool for request in self.waiting.values())
            assert all(count <= self.max_queued for count in num_waiting.values())
        for request in self.waiting.values():
            assert request.deadline > self.now or not isinstance(event, Timer), "expired work waits on"
        if self.waiting and any(isfinite(request.deadline) for request in self.waiting.values()):
            earliest = min(request.deadline for request in self.waiting.values())
            assert self.timer_at <= max(earliest, self.now) + EPSILON, "nobody would wake up for the deadline"

    def finish_all(self, key_order: random.Random | None = None) -> None:
        """End everything that runs, in order of dispatch, or shuffled."""
        keys = list(self.running)
        if key_order is not None:
            key_order.shuffle(keys)
        for key in keys:
            if key in self.running:
                self.give(FirstToken(key))
                self.give(Finished(key, 10))

    def cancel(self, key: str) -> list[Command]:
        return self.give(Cancelled(key))
