"""The report's picture: three panels of bars."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from summary import Figures, Summary

__all__ = ["draw"]

OWN_COLOUR: Final = "#1b6ca8"
PEER_COLOUR: Final = "#b0b7bd"
FLOOR_COLOUR: Final = "#e3e6e8"


def draw(summary: Summary, path: Path) -> None:
    """Write a PNG: requests/s and SSE tokens/s at c=64, and added TTFT at 64 paced streams (p50 bars, p99 ticks)."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    _rates(panels[0], summary, "chat16-c64", "requests_per_s", "chat requests/s, 64 connections")
    _rates(panels[1], summary, "stream-c64", "tokens_per_s", "SSE tokens/s, 64 streams without delay")
    _added(panels[2], summary)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _rates(axes: Axes, summary: Summary, workload: str, field: str, title: str) -> None:
    values = {
        name: float(getattr(found[workload], field)) for name, found in summary.items() if workload in found
    }
    bars = axes.barh(list(values), list(values.values()), color=[_colour(name) for name in values])
    axes.bar_label(bars, [f"{value:,.0f}" for value in values.values()], padding=3, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _finish(axes, title)


def _added(axes: Axes, summary: Summary) -> None:
    found: dict[str, Figures] = {
        name: by_workload["paced-c64"]
        for name, by_workload in summary.items()
        if "paced-c64" in by_workload and by_workload["paced-c64"].added_p50_ms is not None
    }
    middle = [figures.added_p50_ms or 0.0 for figures in found.values()]
    high = [figures.added_p99_ms or 0.0 for figures in found.values()]
    axes.barh(list(found), middle, color=[_colour(name) for name in found])
    axes.plot(high, list(found), "|", color="black", markersize=11)
    for number, (p50, p99) in enumerate(zip(middle, high, strict=True)):
        axes.text(p99, number, f"  {p50:.2f} / {p99:.2f}", va="center", fontsize=8)
    axes.set_xscale("log")
    _finish(axes, "added TTFT ms, p50 (bar) and p99 (tick), 64 streams")


def _colour(name: str) -> str:
    if name == "direct":
        return FLOOR_COLOUR
    return OWN_COLOUR if name.startswith("sage") else PEER_COLOUR


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
