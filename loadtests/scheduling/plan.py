"""Which policies are compared, and which aims the comparison is held against."""

from __future__ import annotations

from typing import Final

from sage_policy import BASELINES, LAYERS, policy_options

__all__ = ["AIMS", "HYBRID", "MAIN", "POLICIES", "PUSH", "has_shedding", "is_ablation", "label_of"]

HYBRID: Final = "hybrid"


def _variants(name: str) -> list[str]:
    """Return a baseline plain and with the switches that it does not have by nature."""
    holds = policy_options(name)["hold"]
    return [name, f"{name}+shed"] if holds else [name, f"{name}+hold", f"{name}+shed", f"{name}+hold+shed"]


POLICIES: Final = (
    HYBRID,
    *(f"{HYBRID}-{layer}" for layer in LAYERS),
    *(variant for name in BASELINES for variant in _variants(name)),
)
"""Everything that is measured: ours, ours without one layer each, every baseline with its switches."""

PUSH: Final = tuple(name for name in BASELINES if not policy_options(name)["hold"])
"""Baselines that dispatch on arrival, as routers do."""

MAIN: Final = (HYBRID, "lmetric", "dynamo-cost", "least-outstanding", "least-outstanding+hold", "cache-aware")
"""The policies of the figures."""

AIMS: Final = {
    "push": 1.3,  # capacity over the best push baseline, mixed fleets
    "prefixes": 1.15,  # capacity over LMetric and Dynamo cost where prefixes repeat
    "overload": 2.0,  # goodput over every baseline without shedding
    "overload-push": 2.0,  # the same, over those that dispatch on arrival
    "worst": 0.98,  # capacity over the best baseline with any switches, everywhere
}


def is_ablation(name: str) -> bool:
    """True for ours without a layer."""
    return name.startswith(f"{HYBRID}-")


def has_shedding(name: str) -> bool:
    """True where a policy refuses work."""
    return bool(policy_options(name).get("shed", True))


def label_of(name: str) -> str:
    """Return how a table calls a policy."""
    return f"**{name}**" if name == HYBRID else name
