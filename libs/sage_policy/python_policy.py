"""Python policies in the native simulator: its plain numbers become events, the commands numbers again.

The code behind it is the user's and may raise or return anything: here that becomes one line, `PolicyFailure`.
"""

from __future__ import annotations

import inspect
import math
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from sage_core import ConfigurationError
from sage_native import Policy as NativePolicy
from sage_native import PythonPolicy
from sage_policy.configured import SHED_CODES, ConfiguredPolicy
from sage_policy.policy import (
    Abort,
    Cancelled,
    Command,
    Decision,
    Dispatch,
    EngineProfile,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceDown,
    InstanceUp,
    Policy,
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

__all__ = ["GuardedPolicy", "PolicyFailure", "native_of"]

_MAX_TIMERS: Final = 10_000
"""Timers that may fire one after the other without the clock moving: a policy that arms more stands still."""

_MAX_SHOWN: Final = 300
"""Characters of an exception that clients and `sage status` are shown."""

_TIER_CLASSES = ("interactive", "normal", "batch")


def native_of(policy: Policy) -> NativePolicy:
    """Return the object that the native simulator runs: the policy's own native part, or a bridge to its Python."""
    if isinstance(policy, ConfiguredPolicy):
        return policy.native
    return PythonPolicy(_Bridge(policy))


class PolicyFailure(ConfigurationError):
    """A policy raised, or answered with what is no command. One line that names file, class and line."""

    def __init__(self, policy: Policy, error: BaseException) -> None:
        place = _place(policy, error)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        # Native code quotes every argument that it cannot take.
        what = what if len(what) <= _MAX_SHOWN else f"{what[:_MAX_SHOWN]}…"
        super().__init__(f"policy {_label(policy)} failed: {what}{f' ({place})' if place else ''}")


class GuardedPolicy:
    """A policy of which nothing but `PolicyFailure` escapes, whatever its code does."""

    def __init__(self, policy: Policy) -> None:
        self.name = policy.name
        self._policy = policy

    def handle(self, event: Event, now: float) -> list[Command]:
        """See `Policy.handle`. Raises PolicyFailure."""
        try:
            return list(self._policy.handle(event, now))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise PolicyFailure(self._policy, error) from error


class _Bridge:
    """The calls of `sage_native.Policy`, made on a Python policy. Names are the numbers in decimal."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._requests: set[str] = set()
        self._instances: set[str] = set()
        self._now = 0.0
        self._num_timers = 0

    def submitted(
        self,
        now: float,
        request: int,
        pool: int,
        tenant: int,
        tier: int,
        may_shed: bool,
        priority: int,
        started_at: float,
        deadline: float,
        ttft_slo: float,
        tpot_slo: float,
        e2e_slo: float,
        downstream: float,
        num_prompt_tokens: int,
        max_tokens: int,
        num_items: int,
        route: int,
        blocks: list[int],
    ) -> list[Any]:
        del may_shed
        event = Submitted(
            key=str(request),
            pool=str(pool),
            deadline=deadline,
            num_items=num_items,
            num_chars=4 * num_prompt_tokens,
            max_tokens=max_tokens,
            tenant=str(tenant),
            slo_class=_TIER_CLASSES[tier],
            priority=priority,
            num_prompt_tokens=num_prompt_tokens,
            ttft_slo=ttft_slo,
            tpot_slo=tpot_slo,
            e2e_slo=e2e_slo,
            started_ago=now - started_at,
            downstream_seconds=downstream,
            blocks=tuple(blocks),
            route=str(route),
        )
        return self._run(event, now)

    def started(self, now: float, request: int) -> list[Any]:
        return self._run(Started(str(request)), now)

    def first_token(self, now: float, request: int, num_cached: int) -> list[Any]:
        return self._run(FirstToken(str(request), num_cached), now)

    def progressed(self, now: float, request: int, num_tokens: int) -> list[Any]:
        return self._run(Progressed(str(request), num_tokens), now)

    def finished(self, now: float, request: int, num_tokens: int) -> list[Any]:
        return self._run(Finished(str(request), num_tokens), now)

    def cancelled(self, now: float, request: int) -> list[Any]:
        return self._run(Cancelled(str(request)), now)

    def instance_up(
        self,
        now: float,
        instance: int,
        pool: int,
        device: int,
        is_batched: bool,
        is_gpu: bool,
        max_in_flight: int,
        usd_per_hour: float,
        prefix_block: int,
        limits: tuple[int, int, int, int, int, float],
        cost: tuple[float, ...],
        running: list[int],
    ) -> list[Any]:
        names = ("a0", "a1", "a2", "m0", "m1", "m2", "m3", "m4", "host")
        limit_names = (
            "max_sequences",
            "max_step_tokens",
            "max_context",
            "kv_tokens",
            "block_tokens",
            "watermark",
        )
        values: dict[str, Any] = dict(zip(names, cost, strict=True)) | dict(
            zip(limit_names, limits, strict=True)
        )
        up = Instance(
            instance_id=str(instance),
            pool=str(pool),
            max_in_flight=max_in_flight,
            in_flight=tuple(str(request) for request in running),
            is_batched=is_batched,
            is_gpu=is_gpu,
            device=str(device),
            usd_per_hour=usd_per_hour,
            prefix_block=prefix_block,
            profile=EngineProfile(**values),
        )
        return self._run(InstanceUp(up), now)

    def instance_down(self, now: float, instance: int, pool: int, is_lost: bool) -> list[Any]:
        return self._run(InstanceDown(str(instance), str(pool), is_lost), now)

    def telemetry(
        self, now: float, instance: int, pool: int, num_running: int, num_waiting: int, kv_used: float
    ) -> list[Any]:
        return self._run(Telemetry(str(instance), str(pool), num_running, num_waiting, kv_used), now)

    def pool_closed(self, now: float, pool: int) -> list[Any]:
        return self._run(PoolClosed(str(pool)), now)

    def timer(self, now: float) -> list[Any]:
        return self._run(Timer(), now)

    def _run(self, event: Event, now: float) -> list[Any]:
        self._learn(event, now)
        try:
            commands = self._policy.handle(event, now)
            if not isinstance(commands, list | tuple):
                raise TypeError(f"handle returned {commands!r}; expected a list of commands")
            return [self._to_tuple(command) for command in commands]
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise PolicyFailure(self._policy, error) from error

    def _learn(self, event: Event, now: float) -> None:
        """Remember which names there are, and how often the clock stood still."""
        match event:
            case Submitted(key):
                self._requests.add(key)
            case InstanceUp(instance):
                self._instances.add(instance.instance_id)
                self._requests.update(instance.in_flight)
            case _:
                pass
        is_still = isinstance(event, Timer) and now == self._now
        self._num_timers = self._num_timers + 1 if is_still else 0
        self._now = now
        if self._num_timers > _MAX_TIMERS:
            error = RuntimeError(f"{_MAX_TIMERS} timers at {now:g} s; expected SetTimer with a later time")
            raise PolicyFailure(self._policy, error)

    def _to_tuple(self, command: Command) -> tuple[Any, ...]:
        if isinstance(command, Dispatch | Shed | Abort) and command.key not in self._requests:
            raise ValueError(
                f"{type(command).__name__} names request {command.key!r}, which was never submitted"
            )
        if isinstance(command, Dispatch | Abort) and command.instance_id not in self._instances:
            known = ", ".join(sorted(self._instances)[:8]) or "none"
            raise ValueError(
                f"{type(command).__name__} names instance {command.instance_id!r}; expected one of {known}"
            )
        return _to_tuple(command)


def _label(policy: Policy) -> str:
    cls = type(policy)
    file = _file(policy)
    return f"{file}:{cls.__name__}" if file else str(getattr(policy, "name", cls.__name__))


def _file(policy: Policy) -> str:
    """Return the file of a user's policy as it was named; empty for policies that came otherwise."""
    module = sys.modules.get(type(policy).__module__)
    file = getattr(module, "__file__", None)
    if not file or not type(policy).__module__.startswith("sage_user_policy_"):
        return ""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _place(policy: Policy, error: BaseException) -> str:
    """Return the line in the policy's file from which the error came; else where the class begins."""
    file = _file(policy)
    if not file:
        return ""
    full = str(Path(file).absolute())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == full]
    if lines:
        return f"{file}, line {lines[-1]}"
    try:
        return f"{file}, line {inspect.getsourcelines(type(policy))[1]}"
    except (OSError, TypeError):
        return file


def _to_tuple(command: Command) -> tuple[Any, ...]:
    """(kind, request, instance, pool, batch, code, retry_after, at, num_instances, decision) as the native side."""
    match command:
        case Dispatch(key, instance_id, decision, batch):
            return (0, int(key), int(instance_id), 0, _count(batch), 0, 0.0, 0.0, 0, _decision(decision))
        case Shed(key, code, retry_after, decision):
            if code not in SHED_CODES:
                raise ValueError(f"Shed has the code {code!r}; expected one of {', '.join(SHED_CODES)}")
            wait = _finite(retry_after or 0.0)
            return (1, int(key), 0, 0, 0, SHED_CODES.index(code), wait, 0.0, 0, _decision(decision))
        case Abort(key, instance_id, decision):
            return (2, int(key), int(instance_id), 0, 0, 0, 0.0, 0.0, 0, _decision(decision))
        case SetTimer(at):
            return (3, 0, 0, 0, 0, 0, 0.0, _finite(at), 0, ("", 0.0, 0, 0.0, 0.0, 0.0, []))
        case ScaleHint(pool, num_instances, decision):
            return (4, 0, 0, _count(int(pool)), 0, 0, 0.0, 0.0, _count(num_instances), _decision(decision))
        case _:  # the types forbid it, a user's file does not
            raise TypeError(
                f"handle returned {command!r}; expected Dispatch, Shed, Abort, SetTimer or ScaleHint"
            )


def _decision(decision: Decision) -> tuple[Any, ...]:
    return (
        str(decision.reason),
        float(decision.queue_seconds),
        _count(decision.num_queued),
        float(decision.predicted_ttft),
        float(decision.predicted_tpot),
        float(decision.predicted_e2e),
        [],
    )


def _count(value: int) -> int:
    if not 0 <= value < 2**32:
        raise ValueError(f"a command has the number {value!r}; expected 0 to {2**32 - 1}")
    return int(value)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a command has the time {value!r}; expected finite seconds")
    return float(value)
