"""Which models can be asked for, as announced by workers. Pure: announcements in, names out."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Final

from sage_core import BadRequest, NotFound, Unavailable
from sage_wire.messages import ServedModel

__all__ = ["AUTO", "PUBLIC_TASKS", "Catalog"]

AUTO: Final = "auto"
"""The alias of the first announced model of the task that is asked for."""

PUBLIC_TASKS: Final = ("generate", "pipeline", "embed", "rerank")
"""Tasks that clients may ask for; operators are reached through pipelines alone."""

_MAX_NAMED: Final = 20
_MAX_NAME_SHOWN: Final = 120


@dataclass(slots=True)
class _Pool:
    model: ServedModel
    actors: set[str] = field(default_factory=set)
    vanished_at: float | None = None


class Catalog:
    """Every public model, in the order of first announcement.

    A model whose last worker vanished stays known for `remember` seconds: the worker is being restarted, and
    its scheduler holds the request or refuses it with a reason. Times are the caller's clock, in seconds.
    """

    def __init__(self, remember: float) -> None:
        self._remember = remember
        self._pools: dict[tuple[str, str], _Pool] = {}
        self._schedulers: set[str] = set()
        self._next_expiry = inf

    def update(self, actor_id: str, kind: str, models: Iterable[ServedModel], now: float) -> None:
        """Take one actor's latest announcement, which replaces what it announced before."""
        if kind == "scheduler":
            self._schedulers.add(actor_id)
        served = {(model.name, model.task): model for model in models if model.task in PUBLIC_TASKS}
        for key, pool in self._pools.items():
            if key not in served:
                _leave(pool, actor_id, now)
        for key, model in served.items():
            pool = self._pools.setdefault(key, _Pool(model))
            pool.model = model
            pool.actors.add(actor_id)
            pool.vanished_at = None
        self._note_expiry()

    def remove(self, actor_id: str, now: float) -> None:
        """Forget an actor that is gone."""
        self._schedulers.discard(actor_id)
        for pool in self._pools.values():
            _leave(pool, actor_id, now)
        self._note_expiry()

    def models(self, now: float) -> list[ServedModel]:
        """Return what is served, one entry per name and task."""
        self._forget(now)
        return [pool.model for pool in self._pools.values()]

    def find(self, name: str, now: float, allowed: Container[str] | None = None) -> ServedModel:
        """Return the model `name`, or what `auto` means for chat. Raises NotFound with `param="model"`."""
        if name == AUTO:
            return self.resolve(name, ("generate",), now, allowed)
        models = [model for model in self.models(now) if allowed is None or model.name in allowed]
        for model in models:
            if model.name == name:
                return model
        raise _unknown(name, models)

    def resolve(
        self, name: str, tasks: tuple[str, ...], now: float, allowed: Container[str] | None = None
    ) -> ServedModel:
        """Return the model `name` for one of `tasks`; `auto` is the first of the first task, live ones before lost.

        `allowed` names what the caller may ask for, None: all; what it may not is unknown to it. Raises NotFound
        (`param="model"`) naming what is available, BadRequest where the model does other things, and Unavailable
        while no worker of any kind has announced itself.
        """
        self._forget(now)
        if name != AUTO and (allowed is None or name in allowed):
            for task in tasks:
                pool = self._pools.get((name, task))
                if pool is not None:
                    return pool.model
        if not self._pools:
            raise Unavailable("no model is being served yet; workers may still be starting", param="model")
        pools = {
            key: pool for key, pool in self._pools.items() if allowed is None or pool.model.name in allowed
        }
        if name == AUTO:
            found = [pool for (_, task), pool in pools.items() if task == tasks[0]]
            if not found:
                raise NotFound(f"no model is served for {tasks[0]}", param="model")
            return min(found, key=lambda pool: pool.vanished_at is not None).model
        others = [task for pool_name, task in pools if pool_name == name]
        if others:
            raise BadRequest(
                f"model '{name}' serves {' and '.join(others)}; this route needs {' or '.join(tasks)}",
                param="model",
            )
        raise _unknown(name, [pool.model for (_, task), pool in pools.items() if task in tasks])

    def missing(self, now: float) -> list[str]:
        """Return why the gateway is not ready, empty once a scheduler and a generating worker are there."""
        self._forget(now)
        reasons = []
        if not self._schedulers:
            reasons.append("no scheduler is known")
        if not any(task == "generate" and pool.actors for (_, task), pool in self._pools.items()):
            reasons.append("no worker that generates text is known")
        return reasons

    def _note_expiry(self) -> None:
        """Note when the next model expires, so that no request has to look at all of them."""
        vanished = [pool.vanished_at for pool in self._pools.values() if pool.vanished_at is not None]
        self._next_expiry = min(vanished) + self._remember if vanished else inf

    def _forget(self, now: float) -> None:
        if now < self._next_expiry:
            return
        expired = [
            key
            for key, pool in self._pools.items()
            if pool.vanished_at is not None and now - pool.vanished_at >= self._remember
        ]
        for key in expired:
            del self._pools[key]
        self._note_expiry()


def _leave(pool: _Pool, actor_id: str, now: float) -> None:
    if actor_id in pool.actors:
        pool.actors.discard(actor_id)
        if not pool.actors:
            pool.vanished_at = now


def _unknown(name: str, available: list[ServedModel]) -> NotFound:
    names = list(dict.fromkeys(model.name for model in available))
    listed = ", ".join(names[:_MAX_NAMED]) + (" …" if len(names) > _MAX_NAMED else "")
    shown = name if len(name) <= _MAX_NAME_SHOWN else f"{name[:_MAX_NAME_SHOWN]}…"
    return NotFound(f"model '{shown}' does not exist; available: {listed or 'none'}", param="model")
