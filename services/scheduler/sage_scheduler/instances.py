"""What a worker's announcement says of it, as the policy wants to know it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from sage_policy import EngineProfile, Instance
from sage_wire.messages import Announcement, ServedModel
from sage_wire.messages import EngineProfile as AnnouncedProfile
from sage_wire.prefix import BLOCK_TOKENS

__all__ = ["PoolFacts", "instance_of", "pool_facts", "ties_of"]

_UNLIMITED: Final = 2**31 - 1
_SIZED_TASKS: Final = frozenset({"generate", "embed", "rerank"})
"""Tasks whose work is counted in tokens; for others only the number of requests matters."""
_FIELDS: Final = AnnouncedProfile.__struct_fields__


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """What all workers of a pool have in common. `max_prompt`: tokens that the policy may be told of a prompt."""

    is_sized: bool
    max_prompt: int


def pool_facts(models: list[ServedModel]) -> PoolFacts:
    """Describe the pool that `models`, one or more, serve.

    Prompts are measured by estimate, engines refuse by count: so no estimate may say that a prompt fits nowhere.
    """
    contexts = [model.profile.max_context for model in models if model.profile and model.profile.max_context]
    return PoolFacts(
        is_sized=any(model.task in _SIZED_TASKS for model in models),
        max_prompt=max(contexts, default=_UNLIMITED) - 2,
    )


def instance_of(announcement: Announcement, model: ServedModel, in_flight: tuple[str, ...]) -> Instance:
    """Return a worker's capacity for the pool of `model`."""
    return Instance(
        instance_id=announcement.actor_id,
        pool=model.name,
        max_in_flight=announcement.max_in_flight,
        in_flight=in_flight,
        is_batched=model.is_batched,
        is_gpu=model.is_gpu,
        device=_device(announcement, model),
        prefix_block=BLOCK_TOKENS,
        profile=_profile(announcement, model),
    )


def ties_of(announcement: Announcement) -> dict[str, frozenset[str]]:
    """Return for each pool of a worker what it shares with other pools: the worker, and the device."""
    ties: dict[str, frozenset[str]] = {}
    for model in announcement.models:
        shared = {f"worker {announcement.actor_id}"}
        if model.device:
            shared.add(f"device {_device(announcement, model)}")
        ties[model.name] = ties.get(model.name, frozenset()) | shared
    return ties


def _device(announcement: Announcement, model: ServedModel) -> str:
    return f"{announcement.host}/{model.device}" if model.device else ""


def _profile(announcement: Announcement, model: ServedModel) -> EngineProfile:
    """Return the engine's own limits; what it did not name does not limit."""
    unlimited = EngineProfile(
        max_sequences=max(1, announcement.max_in_flight), max_context=_UNLIMITED, kv_tokens=_UNLIMITED
    )
    announced = model.profile
    if announced is None:
        return unlimited
    named = {name: value for name in _FIELDS if (value := getattr(announced, name))}
    return msgspec.structs.replace(unlimited, **named)
