"""Plots of simulations as PNG files. matplotlib is imported only when something is drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from sage_core import ConfigurationError
from sage_simulator.sweep import Point
from sage_simulator.traces.trace import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_plots", "require_matplotlib"]

_TARGET: Final = 0.99
_STYLES: Final = ("-", "--", "-.", ":")
_MARKERS: Final = "osD^vP*X"
_COLOURS: Final = 10
_CDF_POINTS: Final = 2048


def require_matplotlib() -> None:
    """Raise ConfigurationError with the command that installs matplotlib where it is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        raise ConfigurationError("plots need matplotlib; run: pip install 'sage-serve[simulator]'") from None


def draw_plots(points: Sequence[Point], folder: Path, title: str) -> list[Path]:
    """Write the plots into `folder`, which is made; return the files.

    attainment-vs-rate.png and goodput-vs-rate.png where there are several rates, with the range over seeds as a band;
    cdf-RATE.png for each rate: distributions of TTFT and TPOT over all runs of all seeds.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"folder {folder} cannot be made: {error.strerror or error}") from None
    policies = list(dict.fromkeys(point.summary.policy for point in points))
    rates = list(dict.fromkeys(_rate(point) for point in points))
    files = []
    if len(rates) > 1:
        files.append(_save(_attainment(points, policies, title), folder / "attainment-vs-rate.png"))
        files.append(_save(_goodput(points, policies, title), folder / "goodput-vs-rate.png"))
    for rate in rates:
        at_rate = [point for point in points if _rate(point) == rate]
        name = re.sub(r"[^0-9A-Za-z.]+", "-", f"{rate:.6g}")
        files.append(
            _save(
                _distributions(at_rate, policies, f"{title}, {rate:.4g} runs/s"), folder / f"cdf-{name}.png"
            )
        )
    return files


def _rate(point: Point) -> float:
    return point.summary.rate if point.summary.rate is not None else point.summary.reports[0].rate


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure


def _save(figure: Figure, file: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    try:
        figure.savefig(file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be written: {error.strerror or error}") from None
    return file


def _attainment(points: Sequence[Point], policies: list[str], title: str) -> Figure:
    figure = _figure(7.5, 4.5, title)
    axes = figure.add_subplot()
    for number, policy in enumerate(policies):
        rows = [point.summary for point in points if point.summary.policy == policy]
        rates = [_rate(point) for point in points if point.summary.policy == policy]
        _line(axes, number, policy, rates, [row.attainment.mean * 100 for row in rows])
        low, high = [row.attainment.min * 100 for row in rows], [row.attainment.max * 100 for row in rows]
        axes.fill_between(rates, low, high, color=f"C{number % _COLOURS}", alpha=0.15, linewidth=0)
    axes.axhline(_TARGET * 100, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.text(
        0.995,
        _TARGET * 100 - 1,
        f"{_TARGET:.0%}",
        transform=axes.get_yaxis_transform(),
        fontsize=8,
        color="0.4",
        ha="right",
        va="top",
    )
    axes.set_ylim(0, 102)
    _finish(axes, "runs submitted per second", "attainment: good / submitted (%)")
    return figure


def _goodput(points: Sequence[Point], policies: list[str], title: str) -> Figure:
    figure = _figure(7.5, 4.5, title)
    axes = figure.add_subplot()
    rates = sorted({_rate(point) for point in points})
    axes.plot(rates, rates, color="0.7", linewidth=0.8, label="all submitted")
    for number, policy in enumerate(policies):
        own = [point for point in points if point.summary.policy == policy]
        _line(axes, number, policy, [_rate(p) for p in own], [p.summary.goodput.mean for p in own])
    axes.set_ylim(bottom=0)
    _finish(axes, "runs submitted per second", "goodput: good runs per second")
    return figure


def _distributions(points: Sequence[Point], policies: list[str], title: str) -> Figure:
    figure = _figure(11, 4.5, title)
    left, right = figure.subplots(1, 2, sharey=True)
    for point in points:
        number = policies.index(point.summary.policy)
        _cdf(left, number, point.summary.policy, point.ttft)
        _cdf(right, number, point.summary.policy, point.tpot * 1e3)
    _finish(left, "TTFT (s), log scale", "share of all submitted runs")
    _finish(right, "TPOT (ms), log scale", "")
    for axes in (left, right):
        _log_scale(axes)
        axes.set_ylim(0, 1.01)
    return figure


def _cdf(axes: Axes, number: int, policy: str, values: Floats) -> None:
    """Draw the share of ALL runs that were at most so slow: runs that were shed never count as fast."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return
    # A log scale has no zero.
    known = np.maximum(known, 1e-6)
    step = max(1, len(known) // _CDF_POINTS)
    rows = np.unique(np.r_[np.arange(0, len(known), step), len(known) - 1])
    style = _STYLES[(number // _COLOURS) % len(_STYLES)]
    axes.plot(
        known[rows],
        (rows + 1) / len(values),
        style,
        color=f"C{number % _COLOURS}",
        label=policy,
        linewidth=1.5,
    )


def _log_scale(axes: Axes) -> None:
    """Set a log scale with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _line(axes: Axes, number: int, policy: str, x: list[float], y: list[float]) -> None:
    style = _STYLES[(number // _COLOURS) % len(_STYLES)]
    marker = _MARKERS[number % len(_MARKERS)]
    axes.plot(
        x, y, style, marker=marker, markersize=4, color=f"C{number % _COLOURS}", label=policy, linewidth=1.5
    )


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="best")
