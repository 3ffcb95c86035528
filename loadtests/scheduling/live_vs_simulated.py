"""Does the simulator tell the truth? A slice of a trace through a live fleet and through the simulation of that fleet.

Live: nats-server, gateway, scheduler and an llm-worker with the emulated engine for each instance of the fleet, all
real processes; an open-loop HTTP client that counts from the scheduled send. Simulated: the same requests at the same
times, the same fleet and policy. What HTTP, NATS and the processes add to a request is measured beforehand, with the
same requests on engines that take no time, and given to the simulation as its latencies.
Writes `loadtests/results/live_vs_simulated.{json,md,png}`; exit status 1 where they differ by more than the limits.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # http_load

from live_fleet import MIN_PROMPT_TOKENS, SHED, LiveFleet, LiveRun, sends_of

from sage_simulator.fleet import Fleet
from sage_simulator.fleet_file import find_fleet, read_fleet
from sage_simulator.plots import require_matplotlib
from sage_simulator.runner import simulate
from sage_simulator.shaping import Moment, at_rate, cut
from sage_simulator.slo_classes import DEFAULT_CLASSES
from sage_simulator.traces import LLM, read_trace
from sage_simulator.traces.trace import Floats, Ids, Indices
from sage_simulator.workload import Workload, WorkloadOptions, build_workload
from sage_wire.prefix import BLOCK_TOKENS, MAX_BLOCKS

LOADTESTS: Final = Path(__file__).parents[1]
RESULTS: Final = LOADTESTS / "results"
TRACE: Final = LOADTESTS / "traces" / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv.gz"
FLEET: Final = Path(__file__).parent / "fleets" / "rtx4090-x2-rtxpro6000-x2.toml"
TEST_HALF: Final = Moment(0.5, is_share=True)
BUDGET: Final = 600.0
MEAN_LIMIT, P99_LIMIT, SHED_LIMIT = 0.05, 0.15, 0.01
METRICS: Final = ("TTFT", "TPOT", "E2E")
STATISTICS: Final = ("mean", "p50", "p90", "p99")
OVERHEAD_SECONDS: Final = 30.0
OVERHEAD_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per request: float64, NaN where it has no such time: all of a shed request, the TPOT of one token."""

    ttft: Floats
    tpot: Floats
    e2e: Floats

    @property
    def shed_share(self) -> float:
        """Share of the requests that the policy refused."""
        return float(np.isnan(self.e2e).mean())

    def of(self, metric: str) -> Floats:
        """Return the values of `metric` that exist."""
        values: Floats = getattr(self, metric.lower())
        return values[~np.isnan(values)]

    def figures(self) -> dict[str, dict[str, float]]:
        """Return seconds by metric and statistic."""
        found = {}
        for metric in METRICS:
            values = self.of(metric)
            p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
            found[metric] = {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99}
        return found


def workload_of(trace_file: Path, fleet: Fleet, rate: float, seconds: float) -> Workload:
    """Return the beginning of the trace's second half at `rate`, as both sides take it."""
    part = cut(at_rate(cut(read_trace(trace_file), TEST_HALF), rate), None, Moment(seconds))
    classes = tuple(replace(found, budget=BUDGET) for found in DEFAULT_CLASSES if found.pool == LLM)
    workload = build_workload(part, fleet, WorkloadOptions(classes=classes))
    prompt = np.maximum(workload.prompt_tokens, MIN_PROMPT_TOKENS).astype(np.uint32)
    # A client that asks for more than fits is refused before anything is scheduled.
    room = min(instance.longest_run for instance in fleet.instances) - prompt
    block_start, blocks = wire_blocks(workload, prompt)
    return replace(
        workload,
        prompt_tokens=prompt,
        output_tokens=np.maximum(workload.output_tokens, 1).astype(np.uint32),
        max_tokens=np.minimum(workload.max_tokens, room).astype(np.uint32),
        block_start=block_start,
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
    )


def wire_blocks(workload: Workload, prompt: Indices) -> tuple[Indices, Ids]:
    """Return the prompts' blocks in the size that they have live: parts of the trace's own, then ones of their own."""
    parts = workload.block_tokens // BLOCK_TOKENS
    next_own, found = 2**62, []
    for row, num_tokens in enumerate(prompt.tolist()):
        shared = workload.blocks[workload.block_start[row] : workload.block_start[row + 1]].astype(object)
        ids = [int(block) * parts % 2**61 + part for block in shared for part in range(parts)]
        # The last block holds what tells the length of the answer.
        ids = ids[: max(0, num_tokens // BLOCK_TOKENS - 1)]
        num_own = num_tokens // BLOCK_TOKENS - len(ids)
        ids += range(next_own, next_own + num_own)
        found.append(np.array(ids[:MAX_BLOCKS], np.uint64))
        next_own += num_own
    starts = np.cumsum([0, *map(len, found)]).astype(np.uint32)
    return starts, np.concatenate(found)


def measured_overhead(fleet: Fleet, workload: Workload, policy: str, seed: int) -> Floats:
    """Return what all but the engines add to the TTFT of each of the first requests: seconds."""
    rows = int(np.searchsorted(workload.arrival, OVERHEAD_SECONDS))
    longest = max(instance.profile.max_context for instance in fleet.instances)
    lines = ["[profiles.instant]", "a0 = 1e-7", "m0 = 1e-7", f"max_context = {longest}"]
    for instance in fleet.instances:
        lines += ["[[group]]", f'name = "{instance.name.replace("/", "-")}"', f'pool = "{instance.pool}"']
        lines += ['profile = "instant"', f"max_in_flight = {instance.max_in_flight}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instant.toml"
        file.write_text("\n".join(lines))
        short = replace(workload, output_tokens=np.minimum(workload.output_tokens, OVERHEAD_TOKENS))
        with LiveFleet(file, policy, seed) as live:
            run = live.run(sends_of(short)[:rows])
    return live_times(run, short).ttft


def live_times(run: LiveRun, workload: Workload) -> Times:
    """Return what the client saw. Raises SystemExit where an answer is not as long as its engine was told."""
    found = run.outcomes
    is_shed = np.array([outcome.status == SHED for outcome in found])
    ttft = np.array([outcome.first - outcome.due if outcome.first else np.nan for outcome in found])
    e2e = np.where(is_shed, np.nan, [outcome.end - outcome.due for outcome in found])
    num_tokens = workload.output_tokens[: len(found)].astype(np.int64)
    answered = np.array([outcome.num_events for outcome in found])
    wrong = np.flatnonzero((answered != num_tokens) & ~is_shed)
    if len(wrong):
        row = int(wrong[0])
        raise SystemExit(f"request {row} got {answered[row]} tokens; its engine was told {num_tokens[row]}")
    gaps = num_tokens - 1
    return Times(ttft, np.where(gaps > 0, (e2e - ttft) / np.maximum(gaps, 1), np.nan), e2e)


def simulated_times(workload: Workload, fleet: Fleet, policy: str, seed: int, overhead: float) -> Times:
    """Return what the simulation says. The three ways of a request get equal shares of the `overhead`."""
    hop = overhead / 3  # client to scheduler, scheduler to engine, engine to client
    network = replace(fleet.network, dispatch_latency=hop, report_latency=hop, telemetry_latency=hop)
    times = simulate(workload, replace(fleet, network=network), policy, seed=seed).times
    return Times(times.ttft + hop, times.tpot, times.e2e + hop)


def median_figures(runs: Sequence[Times]) -> dict[str, dict[str, float]]:
    """Return the median over runs of each figure."""
    figures = [run.figures() for run in runs]
    return {
        metric: {name: float(np.median([found[metric][name] for found in figures])) for name in STATISTICS}
        for metric in METRICS
    }


def errors_of(live: dict[str, dict[str, float]], simulated: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return (simulated - live) / live by metric and statistic."""
    return {m: {s: simulated[m][s] / live[m][s] - 1 for s in STATISTICS} for m in METRICS}


def is_within(errors: dict[str, Any], live_shed: float, simulated_shed: float) -> bool:
    """True where means, 99th percentiles and what was shed agree."""
    is_close = abs(live_shed - simulated_shed) <= SHED_LIMIT
    return is_close and all(
        abs(found["mean"]) <= MEAN_LIMIT and abs(found["p99"]) <= P99_LIMIT for found in errors.values()
    )


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a page."""
    live, simulated, errors = report["live"], report["simulated"], report["error"]
    lines = [
        "# Live and simulated",
        "",
        f"`{report['command']}`, {report['date']}, {report['machine']}. {report['num_requests']} requests of "
        f"{report['trace']} (second half, {report['rate']:.1f} per second over {report['seconds']:g} s) on the fleet "
        f"{report['fleet']} under the policy `{report['policy']}`: through HTTP, gateway, NATS, scheduler and one "
        f"process per emulated engine, and through `sage_simulator`. Medians of {report['runs']} live runs and of "
        f"{report['num_seeds']} simulations (seeds of step-time noise and ties). Latency counts from the scheduled "
        "send.",
        "",
        f"What the live path adds, measured beforehand on engines that take no time with the same requests: "
        f"{report['overhead_ms']['mean']:.2f} ms on average (p50 {report['overhead_ms']['p50']:.2f}, "
        f"p99 {report['overhead_ms']['p99']:.2f}); the simulation was given this mean as its latencies. During the "
        f"live runs {report['cpu_share']:.0%} of all CPUs were used, and the client sent "
        f"{report['late_p99_ms']:.1f} ms late (p99).",
        "",
        "| metric, ms | statistic | live | range over live runs | simulated | error | limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric in METRICS:
        for name in STATISTICS:
            spread = [run[metric][name] * 1000 for run in report["live_runs"]]
            limit = {"mean": f"{MEAN_LIMIT:.0%}", "p99": f"{P99_LIMIT:.0%}"}.get(name, "")
            lines.append(
                f"| {metric} | {name} | {live[metric][name] * 1000:,.1f} | {min(spread):,.1f} to {max(spread):,.1f} | "
                f"{simulated[metric][name] * 1000:,.1f} | {errors[metric][name]:+.1%} | {limit} |"
            )
    shed = report["shed"]
    lines += [
        "",
        f"Refused by the policy: {shed['live']:.2%} of the requests live, {shed['simulated']:.2%} simulated "
        f"(limit: {SHED_LIMIT:.0%} of all requests); latencies are those of the others.",
    ]
    verdict = "agree" if report["is_within"] else "do NOT agree"
    lines += [
        "",
        f"Live and simulated {verdict} within the limits.",
        "",
        "![CDFs](live_vs_simulated.png)",
        "",
    ]
    return "\n".join(lines)


def draw(live: Sequence[Times], simulated: Sequence[Times], file: Path) -> None:
    """Write the distributions of all live runs and of all simulations, pooled."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, metric in enumerate(METRICS, start=1):
        axes = figure.add_subplot(1, len(METRICS), place)
        for runs, name, style in ((live, "live", "-"), (simulated, "simulated", "--")):
            values = np.sort(np.concatenate([run.of(metric) for run in runs])) * 1000
            axes.plot(values, np.arange(1, len(values) + 1) / len(values), style, label=name)
        axes.set_xscale("log")
        axes.set_xlabel(f"{metric} (ms)")
        axes.set_ylabel("share of requests")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file)


def parse_options() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--fleet", default=str(FLEET), help="file or shipped fleet")
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--rate", type=float, default=12.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=150.0, help="of arrivals")
    parser.add_argument("--runs", type=int, default=3, help="live runs")
    parser.add_argument("--seeds", type=int, default=15, help="simulations")
    parser.add_argument("--seed", type=int, default=0, help="of the live policy")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the report")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write the report."""
    options = parse_options()
    require_matplotlib()
    fleet_file = find_fleet(options.fleet)
    fleet = read_fleet(fleet_file)
    workload = workload_of(options.trace, fleet, options.rate, options.seconds)
    overhead = measured_overhead(fleet, workload, options.policy, options.seed)
    print(f"overhead {overhead.mean() * 1000:.2f} ms (median {np.median(overhead) * 1000:.2f})", flush=True)
    simulated = [
        simulated_times(workload, fleet, options.policy, seed, float(overhead.mean()))
        for seed in range(options.seeds)
    ]
    live, runs = [], []
    for number in range(options.runs):
        with LiveFleet(fleet_file, options.policy, options.seed) as instance:
            runs.append(instance.run(sends_of(workload)))
        live.append(live_times(runs[-1], workload))
        print(f"live run {number + 1}: {_line(live[-1].figures())}, CPU {runs[-1].cpu_share:.0%}", flush=True)
    figures, expected = median_figures(live), median_figures(simulated)
    errors = errors_of(figures, expected)
    live_shed = float(np.median([times.shed_share for times in live]))
    simulated_shed = float(np.median([times.shed_share for times in simulated]))
    report = {
        "command": "make live-vs-simulated",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "trace": options.trace.name,
        "fleet": fleet.name,
        "policy": options.policy,
        "rate": workload.rate,
        "seconds": options.seconds,
        "num_requests": len(workload),
        "runs": options.runs,
        "num_seeds": options.seeds,
        "overhead_ms": {
            "mean": float(overhead.mean()) * 1000,
            "p50": float(np.percentile(overhead, 50)) * 1000,
            "p99": float(np.percentile(overhead, 99)) * 1000,
        },
        "cpu_share": max(run.cpu_share for run in runs),
        "late_p99_ms": max(run.late_p99 for run in runs) * 1000,
        "live": figures,
        "live_runs": [run.figures() for run in live],
        "simulated": expected,
        "error": errors,
        "shed": {"live": live_shed, "simulated": simulated_shed},
        "is_within": is_within(errors, live_shed, simulated_shed),
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "live_vs_simulated.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.results / "live_vs_simulated.md").write_text(markdown(report))
    draw(live, simulated, options.results / "live_vs_simulated.png")
    print(markdown(report))
    return 0 if report["is_within"] else 1


def _line(figures: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{m} {figures[m]['mean'] * 1000:.1f} (p99 {figures[m]['p99'] * 1000:.1f})" for m in METRICS
    )


if __name__ == "__main__":
    sys.exit(main())
