"""The workers that a scheduler knows, led here or not, and what of each the policy was told last. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sage_policy import Instance
from sage_scheduler.instances import instance_of, ties_of
from sage_wire.messages import Announcement, ServedModel

__all__ = ["KnownWorkers", "News"]


@dataclass(frozen=True, slots=True)
class News:
    """What the policy must hear of a worker. `is_first`: it has not heard of it for this pool."""

    instance: Instance
    is_first: bool


@dataclass(slots=True)
class _Worker:
    announcement: Announcement
    models: dict[str, ServedModel]
    ties: dict[str, frozenset[str]]
    is_open: bool = True
    told: dict[str, Instance] = field(default_factory=dict)
    """By pool, what the policy was told last."""
    foreign: set[str] = field(default_factory=set)
    """What it runs for earlier leaders: nobody else will hear that it ended."""


class KnownWorkers:
    """See the module. Pools and models are those of workers that take work; who drains is known until it is gone."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}
        self.ties_version = 0
        """Grows whenever `ties` may give something else."""

    def heard(self, announcement: Announcement) -> list[str]:
        """Take in an announcement; return the pools that the worker does not serve any more."""
        models: dict[str, ServedModel] = {}
        for model in announcement.models:
            models.setdefault(model.name, model)
        ties = ties_of(announcement)
        worker = self._workers.get(announcement.actor_id)
        if worker is None or not worker.is_open or ties != worker.ties:
            self.ties_version += 1
        if worker is None:
            self._workers[announcement.actor_id] = _Worker(announcement, models, ties)
            return []
        dropped = sorted(worker.models.keys() - models.keys())
        for pool in dropped:
            worker.told.pop(pool, None)
        worker.announcement, worker.models, worker.ties = announcement, models, ties
        worker.is_open = True
        return dropped

    def closed(self, worker_id: str) -> list[str]:
        """The worker drains; return the pools it took work for until now."""
        worker = self._workers.get(worker_id)
        if worker is None or not worker.is_open:
            return []
        worker.is_open = False
        worker.told.clear()
        self.ties_version += 1
        return sorted(worker.models)

    def gone(self, worker_id: str) -> list[str]:
        """The worker is not there any more; return the pools it had."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return []
        self.ties_version += 1
        return sorted(worker.models)

    def pools(self, worker_id: str) -> list[str]:
        """Return the pools that a worker takes work for, sorted."""
        worker = self._workers.get(worker_id)
        return [] if worker is None or not worker.is_open else sorted(worker.models)

    def of_pool(self, pool: str) -> list[str]:
        """Return the workers that take work for a pool."""
        return [
            worker_id
            for worker_id, worker in self._workers.items()
            if worker.is_open and pool in worker.models
        ]

    def models(self, pool: str) -> list[ServedModel]:
        """Return what the workers that take work for a pool say of it."""
        return [
            model
            for worker in self._workers.values()
            if worker.is_open
            for model in worker.announcement.models
            if model.name == pool
        ]

    def ties(self) -> dict[str, frozenset[str]]:
        """Return every pool that a worker takes work for, with what it shares with others; see `ties_of`."""
        ties: dict[str, frozenset[str]] = {}
        for worker in self._workers.values():
            if worker.is_open:
                for pool, shared in worker.ties.items():
                    ties[pool] = ties.get(pool, frozenset()) | shared
        return ties

    def news(
        self, worker_id: str, pool: str, placed: set[str], pool_of: Callable[[str, str], str | None]
    ) -> News | None:
        """Return what the policy must hear of a worker for a pool; None where it would hear nothing new.

        `placed` was dispatched to it for the pool; as long as some of that is not listed, every announcement is news.
        """
        worker = self._workers[worker_id]
        listed = [key for key in worker.announcement.in_flight if pool_of(key, worker_id) == pool]
        worker.foreign |= set(listed) - placed
        instance = instance_of(worker.announcement, worker.models[pool], tuple(listed))
        told = worker.told.get(pool)
        if told == instance and placed <= set(listed):
            return None
        worker.told[pool] = instance
        return News(instance, is_first=told is None)

    def ended_unheard(self, worker_id: str) -> list[str]:
        """Return what the worker ran for earlier leaders and does not list any more; it is forgotten here."""
        worker = self._workers[worker_id]
        ended = worker.foreign.difference(worker.announcement.in_flight)
        worker.foreign -= ended
        return sorted(ended)

    def forget_key(self, worker_id: str, key: str) -> None:
        """An attempt has ended, by the worker's own report."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.foreign.discard(key)

    def forget_pool(self, pool: str) -> None:
        """The policy knows nothing of the pool any more."""
        for worker in self._workers.values():
            worker.told.pop(pool, None)
