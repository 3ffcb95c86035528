"""Policies by name: `hybrid` and its ablations, every baseline with its hold and shed switches.

A name is a policy followed by switches: `lmetric`, `lmetric+hold`, `least-outstanding+hold+shed`,
`least-outstanding+window10`, and for the hybrid policy the layers to leave out: `hybrid-placement`, `hybrid-hold-fair`.
Or a class of the user's own: `path/to/file.py:ClassName`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sage_core import ConfigurationError
from sage_policy.configured import ConfiguredPolicy
from sage_policy.policy import Policy
from sage_policy.slo import SloClass
from sage_policy.user_policy import is_user_policy, load_user_policy

__all__ = ["BASELINES", "LAYERS", "POLICIES", "make_policy", "policy_options"]

_PLACEMENTS: Final = (
    "round-robin",
    "random",
    "least-outstanding",
    "least-tokens",
    "power-of-two",
    "cache-aware",
    "dynamo-cost",
    "lmetric",
    "predicted-headroom",
    "predicted",
)
_FCFS, _EDF, _SJF, _HYBRID = range(4)
_EAGER, _WINDOW, _DEADLINE = range(3)
_LEAST_OUTSTANDING: Final = _PLACEMENTS.index("least-outstanding")

_PUSH: Final[dict[str, Any]] = {
    "order": _FCFS,
    "batching": _EAGER,
    "hold": False,
    "shed": False,
    "fair": False,
    "learn": True,
}

BASELINES: Final[dict[str, dict[str, Any]]] = {
    name: {**_PUSH, "placement": number} for number, name in enumerate(_PLACEMENTS[:-1])
} | {
    # Orders only matter where something waits: these hold by nature.
    "fcfs": {**_PUSH, "placement": _LEAST_OUTSTANDING, "hold": True},
    "edf": {**_PUSH, "placement": _LEAST_OUTSTANDING, "hold": True, "order": _EDF},
    "sjf": {**_PUSH, "placement": _LEAST_OUTSTANDING, "hold": True, "order": _SJF},
    "vtc": {**_PUSH, "placement": _LEAST_OUTSTANDING, "hold": True, "fair": True, "tenant_quantum": 0.0},
}
"""Name → options. Sources of each rule: native/include/sage/policy/config.hpp and docs/explanation/scheduling.md."""

LAYERS: Final[dict[str, dict[str, Any]]] = {
    "admission": {"shed": False},
    "fair": {"fair": False, "order": _FCFS},
    "hold": {"hold": False},
    "placement": {"placement": _LEAST_OUTSTANDING},
    "batcher": {"batching": _EAGER},
    "learning": {"learn": False},
}
"""What `hybrid-LAYER` changes."""

_SWITCHES: Final[dict[str, dict[str, Any]]] = {
    "hold": {"hold": True},
    "shed": {"shed": True},
    "window5": {"hold": True, "batching": _WINDOW, "window": 0.005},
    "window10": {"hold": True, "batching": _WINDOW, "window": 0.010},
}

POLICIES: Final = ("hybrid", *BASELINES)
"""The names without switches."""


def policy_options(name: str) -> dict[str, Any]:
    """Return the native options that `name` stands for. Raises ConfigurationError naming what there is."""
    head, *switches = name.split("+")
    base, *dropped = head.split("-") if head.startswith("hybrid") else (head,)
    options: dict[str, Any]
    if base == "hybrid":
        options = {}
        for layer in dropped:
            if layer not in LAYERS:
                raise ConfigurationError(
                    f"scheduling policy {name!r} leaves out {layer!r}; expected one of {', '.join(LAYERS)}"
                )
            options |= LAYERS[layer]
    elif base in BASELINES:
        options = dict(BASELINES[base])
    else:
        raise ConfigurationError(
            f"scheduling policy {name!r} is unknown; expected one of {', '.join(POLICIES)}, "
            f"with switches such as lmetric+hold+shed or hybrid-placement, or path/to/file.py:ClassName"
        )
    for switch in switches:
        if switch not in _SWITCHES:
            raise ConfigurationError(
                f"scheduling policy {name!r} has the switch {switch!r}; expected one of {', '.join(_SWITCHES)}"
            )
        options |= _SWITCHES[switch]
    return options


def make_policy(
    name: str,
    *,
    max_queued: int,
    seed: int,
    classes: Mapping[str, SloClass] | None = None,
    **weights: Any,
) -> Policy:
    """Return a fresh policy for all pools of one scheduler. Raises ConfigurationError naming the policies there are.

    `weights` override single options of native/include/sage/policy/config.hpp, for tuning; a policy in a user's own
    file gets them as keywords.
    """
    if is_user_policy(name):
        return load_user_policy(name, max_queued=max_queued, seed=seed, classes=classes, **weights)
    options = {**policy_options(name), "max_queued": max_queued, "seed": seed, **weights}
    return ConfiguredPolicy(name, options, classes)
