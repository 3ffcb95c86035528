"""The native policies behind the Python seam: names in, names out; every decision is made in C++."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from sage_native import ConfiguredPolicy as NativePolicy
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
    PoolClosed,
    Progressed,
    ScaleHint,
    SetTimer,
    Shed,
    Started,
    Submitted,
    Telemetry,
    Timer,
)
from sage_policy.slo import DEFAULT_CLASSES, SloClass, targets_of

__all__ = ["CHARS_PER_TOKEN", "SHED_CODES", "ConfiguredPolicy"]

SHED_CODES: Final = ("overloaded", "deadline_exceeded", "worker_lost", "cancelled", "context_length_exceeded")
CHARS_PER_TOKEN: Final = 4
"""Prompt tokens are estimated from characters where the driver does not give them."""

_DISPATCH, _SHED, _ABORT, _SET_TIMER, _SCALE_HINT = range(5)


class ConfiguredPolicy:
    """A native policy for all pools of one scheduler; see `Policy`. Made by `make_policy`."""

    def __init__(
        self, name: str, options: Mapping[str, Any], classes: Mapping[str, SloClass] | None = None
    ) -> None:
        """`options` are the fields of native/include/sage/policy/config.hpp; unknown ones raise TypeError."""
        self.name = name
        self.options = dict(options)
        self.classes = dict(DEFAULT_CLASSES if classes is None else classes)
        self.native = NativePolicy(**self.options)
        self._requests = _Names()
        self._instances = _Names()
        self._pools = _Names()
        self._tenants = _Names()
        self._devices = _Names()

    def handle(self, event: Event, now: float) -> list[Command]:
        """See `Policy.handle`."""
        commands = [self._command(item) for item in self._give(event, now)]
        for command in commands:
            if isinstance(command, Shed):
                self._requests.drop(command.key)
        if isinstance(event, Finished) and not self.native.knows(self._requests.find(event.key)):
            self._requests.drop(event.key)
        elif isinstance(event, PoolClosed):
            self._requests.keep(self.native.knows)
        return commands

    def _give(self, event: Event, now: float) -> list[Any]:
        native, requests = self.native, self._requests
        match event:
            case Submitted():
                return self._submitted(event, now)
            case Started(key):
                return native.started(now, requests.find(key))
            case FirstToken(key, num_cached):
                return native.first_token(now, requests.find(key), num_cached)
            case Progressed(key, num_tokens):
                return native.progressed(now, requests.find(key), num_tokens)
            case Finished(key, num_tokens):
                return native.finished(now, requests.find(key), num_tokens)
            case Cancelled(key):
                return native.cancelled(now, requests.find(key))
            case InstanceUp(instance):
                return self._instance_up(instance, now)
            case InstanceDown(instance_id, pool, is_lost):
                number = self._instances.find(_slot(instance_id, pool))
                return native.instance_down(now, number, self._pools.find(pool), is_lost)
            case Telemetry(instance_id, pool, num_running, num_waiting, kv_used):
                number = self._instances.find(_slot(instance_id, pool))
                return native.telemetry(
                    now, number, self._pools.find(pool), num_running, num_waiting, kv_used
                )
            case PoolClosed(pool):
                return native.pool_closed(now, self._pools.find(pool))
            case Timer():
                return native.timer(now)

    def _submitted(self, event: Submitted, now: float) -> list[Any]:
        targets = targets_of(event, self.classes)
        return self.native.submitted(
            now,
            self._requests.intern(event.key),
            self._pools.intern(event.pool),
            self._tenants.intern(event.tenant),
            targets.tier,
            targets.may_shed,
            event.priority,
            now - event.started_ago,
            event.deadline,
            targets.ttft,
            targets.tpot,
            targets.e2e,
            event.downstream_seconds,
            event.num_prompt_tokens or -(-event.num_chars // CHARS_PER_TOKEN),
            event.max_tokens,
            max(1, event.num_items),
            zlib.crc32(event.route.encode()),
            event.blocks,
        )

    def _instance_up(self, instance: Instance, now: float) -> list[Any]:
        profile = instance.profile
        return self.native.instance_up(
            now,
            self._instances.intern(_slot(instance.instance_id, instance.pool)),
            self._pools.intern(instance.pool),
            self._devices.intern(instance.device or instance.instance_id),
            instance.is_batched,
            instance.is_gpu,
            instance.max_in_flight,
            instance.usd_per_hour,
            instance.prefix_block,
            (
                profile.max_sequences,
                profile.max_step_tokens,
                profile.max_context,
                profile.kv_tokens,
                profile.block_tokens,
                profile.watermark,
            ),
            [
                profile.a0,
                profile.a1,
                profile.a2,
                profile.m0,
                profile.m1,
                profile.m2,
                profile.m3,
                profile.m4,
                profile.host,
            ],
            [self._requests.intern(key) for key in instance.in_flight],
        )

    def _command(self, item: Any) -> Command:
        kind, request, instance, pool, batch, code, retry_after, at, num_instances, why = item
        if kind == _SET_TIMER:
            return SetTimer(at)
        decision = self._decision(why)
        if kind == _DISPATCH:
            return Dispatch(self._requests.name(request), self._instance(instance), decision, batch)
        if kind == _SHED:
            return Shed(self._requests.name(request), SHED_CODES[code], retry_after or None, decision)
        if kind == _ABORT:
            return Abort(self._requests.name(request), self._instance(instance), decision)
        return ScaleHint(self._pools.name(pool), num_instances, decision)

    def _decision(self, why: Any) -> Decision:
        reason, queue_seconds, num_queued, ttft, tpot, e2e, candidates = why
        return Decision(
            reason,
            queue_seconds,
            num_queued,
            tuple(Candidate(self._instance(number), score, blocked) for number, score, blocked in candidates),
            ttft,
            tpot,
            e2e,
        )

    def _instance(self, number: int) -> str:
        return self._instances.name(number).partition("\n")[0]


def _slot(instance_id: str, pool: str) -> str:
    """One worker serves several pools: to the policy it is an instance in each, on one device."""
    return f"{instance_id}\n{pool}"


class _Names:
    """Numbers for names, given in order of first use, so that a replay gives the same. 0 is nobody."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._next = 1

    def intern(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = self._next
            self._names[number] = name
            self._next += 1
        return number

    def find(self, name: str) -> int:
        return self._numbers.get(name, 0)

    def name(self, number: int) -> str:
        return self._names[number]

    def drop(self, name: str) -> None:
        number = self._numbers.pop(name, None)
        if number is not None:
            del self._names[number]

    def keep(self, is_known: Callable[[int], bool]) -> None:
        self._names = {number: name for number, name in self._names.items() if is_known(number)}
        self._numbers = {name: number for number, name in self._names.items()}
