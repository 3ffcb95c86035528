"""Which pool a node asks: what `auto` in a pipeline means at this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sage_client import resolve_pool
from sage_core import Unavailable
from sage_pipeline import AUTO
from sage_wire.messages import Announcement

__all__ = ["PoolDirectory"]


class PoolDirectory:
    """Resolves model names of pipelines. A named model is taken at its word: its scheduler knows whether it exists."""

    def __init__(self, announcements: Callable[[], Iterable[Announcement]]) -> None:
        self._announcements = announcements
        self._last: dict[str, str] = {}

    def resolve(self, task: str, name: str) -> str:
        """Return the pool for `task`; for `auto` the first that serves it, by name.

        While the only worker of a task restarts, its pool stays the answer: the scheduler holds requests for it.
        Raises Unavailable, with a time to retry after, where no worker has served the task yet.
        """
        if name != AUTO:
            return name
        try:
            self._last[task] = resolve_pool(self._announcements(), AUTO, task).name
        except Unavailable:
            if task not in self._last:
                raise
        return self._last[task]
