"""Policies by the name that settings give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sage_core import ConfigurationError
from sage_policy.least_outstanding import LeastOutstanding
from sage_policy.policy import Policy

__all__ = ["POLICIES", "make_policy"]

POLICIES: Final[dict[str, Callable[[int, int], Policy]]] = {
    LeastOutstanding.name: lambda max_queued, seed: LeastOutstanding(max_queued=max_queued, seed=seed),
}
"""Name → factory taking (max_queued, seed)."""


def make_policy(name: str, *, max_queued: int, seed: int) -> Policy:
    """Return a fresh policy for one pool. Raises ConfigurationError naming the policies there are."""
    factory = POLICIES.get(name)
    if factory is None:
        raise ConfigurationError(
            f"scheduling policy {name!r} is unknown; expected one of {', '.join(POLICIES)}"
        )
    return factory(max_queued, seed)
