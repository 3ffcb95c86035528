"""The comparison as Markdown tables. Every figure comes from the measurements handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from cells import RANGE
from claims import Claim, capacity_of, claims
from compare import Comparison
from plan import HYBRID, is_ablation, label_of
from scenarios import SCENARIOS
from search import step_near

__all__ = ["ablation_table", "aims_table", "capacity_table", "overload_table", "table", "tenant_table"]

_AIM_WORDS: Final = {
    "push": "capacity / best push baseline, mixed fleets",
    "prefixes": "capacity / this router, where prefixes repeat",
    "overload": "overload goodput / best baseline without shedding",
    "overload-push": "overload goodput / best push baseline without shedding",
    "worst": "capacity / best baseline with any switches",
}

_TENANT_ROWS: Final = (
    HYBRID,
    f"{HYBRID}-fair",
    "vtc",
    "vtc+shed",
    "edf+shed",
    "sjf",
    "sjf+shed",
    "least-outstanding",
    "lmetric",
    "lmetric+hold+shed",
)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], num_words: int = 1) -> str:
    """Return a Markdown table; the first `num_words` columns are words, the others figures."""
    align = ["---"] * num_words + ["---:"] * (len(header) - num_words)
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(align)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def aims_table(comparison: Comparison) -> str:
    """Return a line per aim and scenario, with what was found; missed ones say so."""
    order = list(_AIM_WORDS)
    found = sorted(claims(comparison), key=lambda claim: order.index(claim.aim))
    rows = [
        [
            _AIM_WORDS[claim.aim],
            claim.scenario,
            claim.found.other,
            f">= {claim.wanted:g}",
            _ratio_words(comparison, claim),
            f"{claim.found.low:.2f} to {claim.found.high:.2f}",
            "met" if claim.is_met else "**missed**",
        ]
        for claim in found
    ]
    return table(
        ["hybrid's …", "scenario", "against", "aim", "ratio", "95 % interval", ""], rows, num_words=3
    )


def capacity_table(comparison: Comparison) -> str:
    """Return the mean capacity of every policy on every scenario; bold: the best of a scenario but ours."""
    scenarios = list(comparison.steps)
    policies = [policy for policy in next(iter(comparison.steps.values())) if not is_ablation(policy)]
    rows = []
    for policy in _ordered(policies):
        cells = [_capacity_cell(comparison, scenario, policy) for scenario in scenarios]
        rows.append([label_of(policy), *cells])
    return table(["policy", *scenarios], rows)


def overload_table(comparison: Comparison) -> str:
    """Return mean goodput (attainment) of every policy in overload."""
    scenarios = list(comparison.overloads)
    header = [f"{name} ({np.mean(comparison.overload_rate[name]):.3g}/s)" for name in scenarios]
    policies = [policy for policy in next(iter(comparison.overloads.values())) if not is_ablation(policy)]
    rows = []
    for policy in _ordered(policies):
        cells = []
        for name in scenarios:
            found = comparison.overloads[name][policy]
            goodput, share = (
                float(np.mean([getattr(one, field) for one in found])) for field in ("goodput", "attainment")
            )
            cells.append(f"{goodput:.3g} ({share:.0%})".replace("%", " %"))
        rows.append([label_of(policy), *cells])
    return table(["policy", *header], rows)


def ablation_table(comparison: Comparison) -> str:
    """Return ours without each layer as shares of ours: capacity, and goodput in overload."""
    scenarios = list(comparison.steps)
    rows = []
    for policy in (name for name in next(iter(comparison.steps.values())) if is_ablation(name)):
        cells = []
        for name in scenarios:
            ours = np.mean(capacity_of(comparison, name, HYBRID))
            capacity = np.mean(capacity_of(comparison, name, policy)) / ours
            goodputs = [
                np.mean([one.goodput for one in comparison.overloads[name][which]])
                for which in (policy, HYBRID)
            ]
            cells.append(f"{capacity:.2f} / {goodputs[0] / goodputs[1]:.2f}")
        rows.append([policy, *cells])
    return table(["without", *scenarios], rows)


def tenant_table(comparison: Comparison) -> str:
    """Return how evenly the tenants of a scenario fare in overload; "" where no scenario has tenants."""
    scenarios = [name for name in comparison.overloads if SCENARIOS[name].has_tenants]
    if not scenarios:
        return ""
    rows = []
    for policy in (name for name in _TENANT_ROWS if name in comparison.overloads[scenarios[0]]):
        found = [comparison.overloads[name][policy] for name in scenarios]
        indices = [[one.jain for one in seeds if one.jain is not None] for seeds in found]
        rows.append([label_of(policy), *(f"{np.mean(values):.3f}" for values in indices)])
    return table(["policy", *scenarios], rows)


def _ordered(policies: Sequence[str]) -> list[str]:
    """Ours first, then the baselines as they are registered."""
    return sorted(policies, key=lambda name: name != HYBRID)


def _lowest_step(scenario: str) -> int:
    return step_near(SCENARIOS[scenario].guess / RANGE)


def _capacity_cell(comparison: Comparison, scenario: str, policy: str) -> str:
    rates = capacity_of(comparison, scenario, policy)
    steps = comparison.steps[scenario][policy]
    below = "< " if all(step == _lowest_step(scenario) for step in steps) else ""
    return (
        f"{below}{np.mean(rates):.3g} ({min(rates):.3g}-{max(rates):.3g})"
        if not below
        else f"< {rates[0]:.2g}"
    )


def _ratio_words(comparison: Comparison, claim: Claim) -> str:
    if claim.aim.startswith("overload"):
        theirs = [one.goodput for one in comparison.overloads[claim.scenario][claim.found.other]]
        most = float(np.mean(comparison.overload_rate[claim.scenario]) / np.mean(theirs))
        return f"{claim.found.mean:.2f} (of {most:.2f})" if most < 10 else f"{claim.found.mean:.2f}"
    return f"{'at least ' if _is_bound(comparison, claim) else ''}{claim.found.mean:.2f}"


def _is_bound(comparison: Comparison, claim: Claim) -> bool:
    """True where the other's capacity lies below the rates that were searched."""
    lowest = _lowest_step(claim.scenario)
    return any(step == lowest for step in comparison.steps[claim.scenario][claim.found.other])
