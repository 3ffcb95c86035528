"""The simulator against two measured runs of vLLM: TTFT, TPOT and E2E of 300 requests each.

The coefficients of each engine are fitted to its own layer times. One number is then calibrated: the host's overhead
per step, so that the mean TPOT of ONE run is met. The gate is the OTHER run, in both directions: means within 5 %,
99th percentiles within 10 %. The runs go through `sage_simulator.simulate`, as `sage simulate` does, with one engine,
the policy round-robin (every request is pushed on arrival) and no network. Writes loadtests/results/
simulator_validation.md and a plot beside it; exits 1 outside the gate, or when the shipped profiles are not those that
the data give.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from fit_profiles import is_shipped
from measured_engines import DATA, NUM_STEPS, Engine, measured_engines

from sage_policy import EngineProfile
from sage_simulator import (
    Fleet,
    FleetInstance,
    Network,
    WorkClass,
    WorkloadOptions,
    build_workload,
    simulate,
)
from sage_simulator.measured_run import Latencies, MeasuredRun
from sage_simulator.mistakes import FileMistake

RESULTS: Final = Path(__file__).parents[1] / "results"
METRICS: Final = ("ttft", "tpot", "e2e")
STATISTICS: Final = {
    "mean": np.nanmean,
    "p50": lambda values: np.nanpercentile(values, 50),
    "p90": lambda values: np.nanpercentile(values, 90),
    "p99": lambda values: np.nanpercentile(values, 99),
}
GATE: Final = {"mean": 0.05, "p99": 0.10}
NO_NETWORK: Final = Network(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run, simulated with a host overhead that `calibrated_on` gave."""

    engine: Engine
    calibrated_on: str
    host: float
    simulated: Latencies

    @property
    def is_gate(self) -> bool:
        """True where the run had no part in the calibration."""
        return self.calibrated_on != self.engine.hardware

    def figures(self, metric: str) -> dict[str, tuple[float, float, float]]:
        """Return (measured, simulated, relative error) of each statistic."""
        found = {}
        for name, statistic in STATISTICS.items():
            measured = float(statistic(getattr(self.engine.run.latencies, metric)))
            simulated = float(statistic(getattr(self.simulated, metric)))
            found[name] = (measured, simulated, simulated / measured - 1)
        return found

    def misses(self) -> list[str]:
        """Return what is outside the gate."""
        return [
            f"{self.engine.hardware}: {metric} {name} is off by {error:+.1%}, allowed are {allowed:.0%}"
            for metric in METRICS
            for name, allowed in GATE.items()
            if abs(error := self.figures(metric)[name][2]) > allowed
        ]


def main() -> int:
    """Simulate, compare, write; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the measurements")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report and its plots")
    parser.add_argument("--no-plots", action="store_true")
    options = parser.parse_args()
    try:
        engines = measured_engines(options.data)
    except FileMistake as error:
        print(error.message, file=sys.stderr)
        return 2
    comparisons = [
        Comparison(engine, other.hardware, other.host, simulated(engine.profile(other.host), engine.run))
        for engine in engines
        for other in engines
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    report = options.output / "simulator_validation.md"
    text = _report(engines, comparisons)
    report.write_text(text, "utf-8")
    print(text)
    if not options.no_plots:
        _plot(comparisons, options.output / "simulator_validation.png")
    problems = [miss for comparison in comparisons if comparison.is_gate for miss in comparison.misses()]
    problems += [
        f"{engine.hardware}: the shipped profile is not what the data give; run fit_profiles.py"
        for engine in engines
        if not is_shipped(engine)
    ]
    for problem in problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return 1 if problems else 0


def simulated(profile: EngineProfile, run: MeasuredRun) -> Latencies:
    """Return what the callers of `run` get from the whole simulator with one engine."""
    engine = FleetInstance(
        name="engine/0",
        group="engine",
        pool="llm",
        device="gpu",
        is_batched=False,
        is_gpu=True,
        max_in_flight=len(run),
        usd_per_hour=0.0,
        profile=profile,
        noise_sigma=0.0,
        interference=1.0,
    )
    fleet = Fleet("measured", (engine,), network=NO_NETWORK)
    workload = build_workload(run.trace(), fleet, WorkloadOptions(classes=(WorkClass("all"),)))
    times = simulate(workload, fleet, "round-robin", check=True).times
    return Latencies(times.ttft, times.tpot, times.e2e)


def _report(engines: list[Engine], comparisons: list[Comparison]) -> str:
    lines = [
        "# The simulator against measured runs of vLLM",
        "",
        "`make validate-simulator`. Data: `loadtests/traces/costmodel_llmservingsim` (vLLM 0.19, Llama-3.1-8B, 300",
        "requests at 10/s, far more than either GPU can take). TTFT and E2E count from the arrival;",
        "TPOT = (E2E - TTFT) / (output tokens - 1).",
        "",
        "## Fits",
        "",
        f"Step times from profiles of single layers: {NUM_STEPS:,} steps drawn within the engine's limits (without",
        "those outside the profile), relative least squares. Errors: mean (90th percentile).",
        "",
        "| engine | steps | decode-only: error | with prompts: error | host overhead that its own run asks for |",
        "|---|---|---|---|---|",
    ]
    for engine in engines:
        decode, mixed = engine.fit.decode, engine.fit.mixed
        lines.append(
            f"| {engine.hardware} | {decode.count + mixed.count} | {decode.mean:.1%} ({decode.p90:.1%}) "
            f"| {mixed.mean:.1%} ({mixed.p90:.1%}) | {engine.host * 1e3:.2f} ms |"
        )
    for is_gate, title in (
        (True, "Gate: calibrated on the other run"),
        (False, "Calibrated on the same run"),
    ):
        lines += ["", f"## {title}", ""]
        if is_gate:
            lines += [
                "Means within 5 %, 99th percentiles within 10 %. Seconds, measured / simulated (error).",
                "",
            ]
        lines += ["| run | host overhead | metric | " + " | ".join(STATISTICS) + " |"]
        lines += ["|---" * (3 + len(STATISTICS)) + "|"]
        for comparison in comparisons:
            if comparison.is_gate == is_gate:
                lines += _rows(comparison)
    return "\n".join(lines) + "\n"


def _rows(comparison: Comparison) -> list[str]:
    rows = []
    for metric in METRICS:
        cells = [
            f"{measured:.4g} / {found:.4g} ({error:+.1%})"
            for measured, found, error in comparison.figures(metric).values()
        ]
        host = f"{comparison.host * 1e3:.2f} ms from {comparison.calibrated_on}"
        rows.append(
            f"| {comparison.engine.hardware} | {host} | {metric.upper()} | " + " | ".join(cells) + " |"
        )
    return rows


def _plot(comparisons: list[Comparison], file: Path) -> None:
    """Draw the distributions of the gate's runs."""
    from matplotlib.figure import Figure

    shown = [comparison for comparison in comparisons if comparison.is_gate]
    figure = Figure(figsize=(12, 3.6 * len(shown)), layout="constrained")
    grid: Any = figure.subplots(len(shown), len(METRICS), squeeze=False)
    for row, comparison in zip(grid, shown, strict=True):
        for axes, metric in zip(row, METRICS, strict=True):
            for label, source, style in (
                ("measured", comparison.engine.run.latencies, "-"),
                ("simulated", comparison.simulated, "--"),
            ):
                values = np.sort(getattr(source, metric))
                axes.step(
                    values, np.arange(1, len(values) + 1) / len(values), style, where="post", label=label
                )
            axes.set_title(
                f"{comparison.engine.hardware}, calibrated on {comparison.calibrated_on}", fontsize=9
            )
            axes.set_xlabel(f"{metric.upper()} (s)")
            axes.set_ylabel("share of requests")
            axes.grid(alpha=0.3)
            axes.legend(loc="lower right")
    figure.savefig(file, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
