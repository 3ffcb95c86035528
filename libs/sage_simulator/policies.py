"""Policies for simulations: chosen once, made afresh for every run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sage_policy import Policy, make_policy

__all__ = ["PolicyChoice", "policy_choice"]

MAX_QUEUED: Final = 1_000_000
"""Requests that may wait in a simulated policy unless told: overload is answered by shedding, not by a full queue."""


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy that can be made again; `make` takes the seed."""

    name: str
    make: Callable[[int], Policy]


def policy_choice(name: str, *, max_queued: int = MAX_QUEUED, **weights: Any) -> PolicyChoice:
    """Return the policy called `name`: one of `sage_policy.POLICIES` with switches, or `FILE.py:CLASS`.

    `weights` override options of its name. Raises ConfigurationError that names the policies there are, or says what is
    wrong with the file.
    """

    def make(seed: int) -> Policy:
        return make_policy(name, max_queued=max_queued, seed=seed, **weights)

    make(0)  # what cannot be made is refused before anything runs
    return PolicyChoice(name, make)
