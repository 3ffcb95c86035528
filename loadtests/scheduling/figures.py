"""Figures of the comparison: attainment over rate, and capacity against the best baseline."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from claims import capacity_of
from compare import Comparison
from PIL import Image
from plan import HYBRID, MAIN, PUSH, is_ablation
from scenarios import SCENARIOS

__all__ = ["Curve", "attainment_figure", "capacity_figure"]

_COLOURS: Final = {
    HYBRID: "#c1121f",
    "lmetric": "#1d3557",
    "dynamo-cost": "#457b9d",
    "least-outstanding": "#8d99ae",
    "least-outstanding+hold": "#2a9d8f",
    "cache-aware": "#e9a23b",
}
_STYLE: Final[dict[str, Any]] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "sage",
}

Curve = tuple[str, Sequence[float], Sequence[float]]
"""(policy, rates, attainments)."""


def attainment_figure(curves: dict[str, list[Curve]], file: Path) -> None:
    """Draw attainment over rate, one panel per scenario."""
    plt = _pyplot()
    with mpl.rc_context(_STYLE):
        num_rows = -(-len(curves) // 2)
        figure, panels = plt.subplots(
            num_rows, 2, figsize=(8, 2.5 * num_rows), layout="constrained", squeeze=False
        )
        for panel, (scenario, found) in zip(panels.flat, curves.items(), strict=False):
            for policy, rates, shares in found:
                width = 2.0 if policy == HYBRID else 1.1
                panel.plot(
                    rates, np.array(shares) * 100, label=policy, color=_COLOURS[policy], linewidth=width
                )
            panel.axhline(99, color="black", linewidth=0.6, linestyle=":")
            panel.set_title(scenario, fontsize=9)
            panel.set_ylim(0, 102)
            panel.set_xlabel("runs/s submitted")
            panel.set_ylabel("attainment, %")
        for panel in panels.flat[len(curves) :]:
            panel.set_visible(False)
        panels.flat[0].legend(fontsize=7, loc="lower left")
        _save(figure, file)
        plt.close(figure)


def capacity_figure(comparison: Comparison, file: Path) -> None:
    """Draw ours, the best push baseline and the best baseline of all per scenario, as shares of ours."""
    plt = _pyplot()
    scenarios = list(comparison.steps)
    with mpl.rc_context(_STYLE):
        figure, panel = plt.subplots(figsize=(8, 3), layout="constrained")
        place = np.arange(len(scenarios))
        groups = {
            "hybrid": ([HYBRID], "#c1121f"),
            "best baseline, any switches": (None, "#2a9d8f"),
            "best push baseline": (PUSH, "#1d3557"),
        }
        for number, (label, (policies, colour)) in enumerate(groups.items()):
            shares, names = [], []
            for scenario in scenarios:
                known = comparison.steps[scenario]
                chosen = [
                    name
                    for name in known
                    if (name in policies if policies else name != HYBRID and not is_ablation(name))
                ]
                ours = np.mean(capacity_of(comparison, scenario, HYBRID))
                means = {name: float(np.mean(capacity_of(comparison, scenario, name))) for name in chosen}
                best = max(means, key=lambda name: means[name])
                shares.append(means[best] / ours)
                names.append("" if best == HYBRID else best)
            bars = panel.bar(place + (number - 1) * 0.27, shares, 0.25, label=label, color=colour)
            for bar, name in zip(bars, names, strict=True):
                at = bar.get_x() + bar.get_width() / 2
                panel.text(at, 0.02, name, rotation=90, ha="center", va="bottom", fontsize=5.5, color="white")
        panel.axhline(1, color="black", linewidth=0.6, linestyle=":")
        panel.set_xticks(place, [f"{name}\n{SCENARIOS[name].fleet}" for name in scenarios], fontsize=5.5)
        panel.set_ylabel("capacity / hybrid's")
        panel.legend(fontsize=7, loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.15))
        _save(figure, file)
        plt.close(figure)


def _save(figure: Any, file: Path) -> None:
    """Write a PNG of 64 colours, a third of the size."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(64).save(file, optimize=True)


def _pyplot() -> Any:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt


assert set(MAIN) <= set(_COLOURS)
