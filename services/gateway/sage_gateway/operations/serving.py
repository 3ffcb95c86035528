"""Which served model a request means, as far as its key may know."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from sage_gateway.operation import Asked
from sage_wire.messages import ServedModel

__all__ = ["find_served", "fingerprint"]


def find_served(asked: Asked, name: str, tasks: tuple[str, ...]) -> ServedModel:
    """Return the model `name` for one of `tasks`, as far as the key may know. Raises what `Catalog.resolve` raises."""
    return asked.catalog.resolve(name, tasks, asked.now, asked.allowed_models)


def fingerprint(served: ServedModel) -> str:
    """Return OpenAI's `system_fingerprint`: the same as long as the same model runs on the same kind of engine."""
    return _fingerprint(served.name, served.engine, served.max_context)


@lru_cache(maxsize=256)
def _fingerprint(*facts: object) -> str:
    return "fp_" + hashlib.sha256(repr(facts).encode()).hexdigest()[:10]
