"""Python policies in the native simulator: its plain numbers become events, the commands numbers again."""

from __future__ import annotations

from typing import Any

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

__all__ = ["native_of"]

_TIER_CLASSES = ("interactive", "normal", "batch")


def native_of(policy: Policy) -> NativePolicy:
    """Return the object that the native simulator runs: the policy's own native part, or a bridge to its Python."""
    if isinstance(policy, ConfiguredPolicy):
        return policy.native
    return PythonPolicy(_Bridge(policy))


class _Bridge:
    """The calls of `sage_native.Policy`, made on a Python policy. Names are the numbers in decimal."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

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
        return [_to_tuple(command) for command in self._policy.handle(event, now)]


def _to_tuple(command: Command) -> tuple[Any, ...]:
    """(kind, request, instance, pool, batch, code, retry_after, at, num_instances, decision) as the native side."""
    match command:
        case Dispatch(key, instance_id, decision, batch):
            return (0, int(key), int(instance_id), 0, batch, 0, 0.0, 0.0, 0, _decision(decision))
        case Shed(key, code, retry_after, decision):
            number = SHED_CODES.index(code)
            return (1, int(key), 0, 0, 0, number, retry_after or 0.0, 0.0, 0, _decision(decision))
        case Abort(key, instance_id, decision):
            return (2, int(key), int(instance_id), 0, 0, 0, 0.0, 0.0, 0, _decision(decision))
        case SetTimer(at):
            return (3, 0, 0, 0, 0, 0, 0.0, at, 0, ("", 0.0, 0, 0.0, 0.0, 0.0, []))
        case ScaleHint(pool, num_instances, decision):
            return (4, 0, 0, int(pool), 0, 0, 0.0, 0.0, num_instances, _decision(decision))


def _decision(decision: Decision) -> tuple[Any, ...]:
    return (
        decision.reason,
        decision.queue_seconds,
        decision.num_queued,
        decision.predicted_ttft,
        decision.predicted_tpot,
        decision.predicted_e2e,
        [],
    )
