"""What the cluster serves, by pool, from what workers announce. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sage_core import NotFound, Unavailable
from sage_wire.messages import Announcement, ServedModel

__all__ = ["AUTO", "resolve_pool", "served_models"]

AUTO = "auto"
"""The name that stands for the first pool of a task, by name."""

_SERVING = frozenset({"ready", "draining"})


def served_models(announcements: Iterable[Announcement]) -> list[ServedModel]:
    """Return every pool that a live worker serves, sorted by name and task, each once."""
    found: dict[tuple[str, str], ServedModel] = {}
    for announcement in announcements:
        if announcement.state in _SERVING:
            for model in announcement.models:
                found.setdefault((model.name, model.task), model)
    return [found[key] for key in sorted(found)]


def resolve_pool(announcements: Iterable[Announcement], name: str, task: str) -> ServedModel:
    """Return the pool named `name` that serves `task`; `auto` means the first one that does.

    Raises NotFound, naming what is served, for an unknown name, and Unavailable where `auto` finds nothing.
    """
    models = [model for model in served_models(announcements) if model.task == task]
    if name == AUTO:
        if not models:
            raise Unavailable(f"no worker serves the task {task!r} now", retry_after=1.0)
        return models[0]
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models) or "none"
    raise NotFound(f"no model {name!r} for the task {task!r}; served: {known}", param="model")
