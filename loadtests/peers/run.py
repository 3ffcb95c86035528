"""SAGE and other OpenAI gateways side by side: one core each, the same client, the same bodies, equally fast mocks.

    python loadtests/peers/run.py                                    everything, with a report (about 25 minutes)
    python loadtests/peers/run.py --quick --peers sage-core          one run of each workload, printed only
    python loadtests/peers/run.py --quick --peers sage-core,sage --workload chat16-c64,stream-c64

The gateway that is measured has the first core to itself; the mock engine, the load generator and what else SAGE
consists of share the second one. `--list` names systems and workloads. Only a complete run (no --quick, --peers,
--workload) writes loadtests/results/peers.{json,md,png}; `--json FILE` writes the figures of any run.

Exit status: 0 measured; 1 a part of SAGE failed or answered wrongly; 2 wrong usage; 3 nothing could be measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import environments
import hops
import measuring
import msgspec
import own_environment
import summary
import terminal
import workloads
from ground import REPOSITORY, Ground
from interpreter import interpreter_version
from peer_systems import DIRECT, PEER_SYSTEMS
from processes import StartFailed
from report import Report, page
from sage_systems import SAGE_SYSTEMS
from systems import Running, System

SYSTEMS: Final[dict[str, System]] = {system.name: system for system in (*SAGE_SYSTEMS, DIRECT, *PEER_SYSTEMS)}
RESULTS: Final = REPOSITORY / "loadtests" / "results"
LOCK: Final = Path(tempfile.gettempdir()) / "sage-bench-peers.lock"
OWN: Final = frozenset(system.name for system in SAGE_SYSTEMS)
WATCHED: Final = ("sage-core", "sage")
MAX_REPEATS: Final = 1
START_SECONDS: Final = 3.5
OVERHEAD_SECONDS: Final = 0.4
T = TypeVar("T")


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass
class Bench:
    """The runs of one call."""

    ground: Ground
    systems: list[System]
    asked: list[workloads.Workload]
    num_runs: int
    max_foreign: float
    is_quick: bool
    is_compiled: bool = True
    runs: list[measuring.Run] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    hops: dict[str, list[hops.Hop]] = dataclasses.field(default_factory=dict)

    def seconds(self) -> float:
        """Estimate how long the runs take."""
        each = sum(
            workload.seconds + OVERHEAD_SECONDS
            for system in self.systems
            for workload in self.asked
            if self._is_measured(system, workload)
        )
        return self.num_runs * (each + START_SECONDS * len(self.systems))

    def make_ready(self) -> None:
        """Install what is missing; drop the systems for which that fails."""
        if any(system.name in OWN for system in self.systems):
            try:
                own_environment.install_sage(self.ground.sage, is_compiled=self.is_compiled)
            except own_environment.InstallFailed as error:
                for system in [system for system in self.systems if system.name in OWN]:
                    self._skip(system, str(error))
        for system in list(self.systems):
            if environments.is_installed(self.ground.environments, system.name):
                continue
            say(f"installing {system.name} …")
            reason = environments.install(self.ground.environments, system.name)
            if reason:
                self._skip(system, reason)

    def measure(self) -> None:
        """Take turns: every system once, then all of them again, each time from another one on."""
        for number in range(self.num_runs):
            shift = number % max(1, len(self.systems))
            for system in self.systems[shift:] + self.systems[:shift]:
                if system.name not in self.skipped:
                    with alone():
                        say(f"run {number + 1} of {self.num_runs}: {system.name}")
                        self._one_life(system)

    def _is_measured(self, system: System, workload: workloads.Workload) -> bool:
        return not (system.unsupported(workload) or (workload.is_fast_only and system.is_slow))

    def _one_life(self, system: System) -> None:
        try:
            with Running(system, self.ground) as running:
                say(f"  ready after {running.ready_seconds:.1f} s")
                for workload in self.asked:
                    if not self._is_measured(system, workload):
                        continue
                    try:
                        self.runs.append(self._undisturbed(running, workload))
                    except measuring.NothingAnswered as error:
                        say(f"  {workload.name}: nothing was answered: {error}")
                if system.name in WATCHED and system.name not in self.hops:
                    self.hops[system.name] = hops.watch(running)
        except StartFailed as error:
            self._skip(system, str(error))

    def _undisturbed(self, running: Running, workload: workloads.Workload) -> measuring.Run:
        """Measure; where others took too much of the machine, again, and keep the run with the least of it."""
        tries: list[measuring.Run] = []
        while True:
            run = measuring.measure(running, workload)
            say("  " + terminal.line(run))
            tries.append(run)
            if run.foreign_share <= self.max_foreign or self.is_quick or len(tries) > MAX_REPEATS:
                return min(tries, key=lambda run: run.foreign_share)
            say(f"  others took {run.foreign_share:.0%} of a core meanwhile; once more")

    def _skip(self, system: System, reason: str) -> None:
        say(f"{system.name} is left out: {reason}")
        self.skipped[system.name] = reason
        self.systems.remove(system)


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other benchmark measures on this machine."""
    with open(LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another benchmark measures on this machine; waiting for it …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", metavar="NAME,…", help="systems to measure; default: all")
    parser.add_argument("--workload", metavar="NAME,…", help="workloads; default: all")
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each; figures are their medians (default 5)"
    )
    parser.add_argument("--quick", action="store_true", help="one run of each, printed only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and runs as JSON, too")
    parser.add_argument(
        "--render", type=Path, metavar="FILE",
        help="write page and picture of the results folder anew from such a file, and end",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="name systems and workloads, and end")
    parser.add_argument(
        "--max-foreign", type=float, default=0.05, metavar="SHARE",
        help="repeat a run while others took more than this share of a core (default 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--sample-ratio", type=float, default=0.0, metavar="SHARE",
        help="share of requests that SAGE traces; all carry a trace header in any case (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--interpreted", action="store_true", help="measure SAGE without its compiled modules"
    )
    parser.add_argument(
        "--polite", action="store_true", help="take no precedence over other processes of this machine"
    )
    options = parser.parse_args(arguments)
    options.systems = chosen(parser, "--peers", options.peers, SYSTEMS)
    options.workloads = chosen(parser, "--workload", options.workload, workloads.WORKLOADS)
    options.is_complete = not (options.quick or options.peers or options.workload or options.interpreted)
    return options


def chosen(parser: argparse.ArgumentParser, option: str, names: str | None, known: dict[str, T]) -> list[T]:
    """Return what `names` asks for, all where it is None."""
    if names is None:
        return list(known.values())
    for name in names.split(","):
        if name not in known:
            parser.error(f"{option} is {name!r}; expected some of {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    if options.list:
        print(terminal.listing(SYSTEMS.values(), workloads.WORKLOADS.values()))
        return 0
    if options.render:
        stored = msgspec.json.decode(options.render.read_bytes(), type=Report)
        write_page(msgspec.structs.replace(stored, aims=summary.aims(stored.figures)))
        return 0
    try:
        ground = Ground.prepare(
            is_urgent=not options.polite,
            sample_ratio=options.sample_ratio,
            is_compiled=not options.interpreted,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"the tools cannot be built; cmake and a C++20 compiler are needed: {error}")
        return 3
    bench = Bench(
        ground,
        options.systems,
        options.workloads,
        1 if options.quick else options.runs,
        options.max_foreign,
        options.quick,
        not options.interpreted,
    )
    bench.make_ready()
    minutes = bench.seconds() / 60
    counts = f"{len(bench.systems)} systems, {len(options.workloads)} workloads, {bench.num_runs} runs"
    say(f"{counts}: about {minutes:.0f} min")
    started = time.monotonic()
    bench.measure()
    say(f"measured for {(time.monotonic() - started) / 60:.1f} min")
    if not bench.runs:
        return 3
    found = summary.summarise(sorted(bench.runs, key=lambda run: list(SYSTEMS).index(run.system)))
    print(terminal.table(found))
    print(terminal.hops(bench.hops))
    report = Report(
        command=" ".join(["python loadtests/peers/run.py", *given]) if given else "make bench-peers",
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, "
        f"Python {interpreter_version()}",
        num_runs=bench.num_runs,
        minutes=(time.monotonic() - started) / 60,
        sample_ratio=options.sample_ratio,
        max_foreign=options.max_foreign,
        systems={system.name: system.note for system in bench.systems},
        skipped=bench.skipped,
        aims=summary.aims(found),
        figures=found,
        hops=bench.hops,
    )
    if options.json is not None:
        write_json(report, options.json)
    if options.is_complete:
        write_json(report, RESULTS / "peers.json")
        write_page(report)
    is_wrong = any(
        figures.num_failed or figures.num_wrong
        for name in OWN & found.keys()
        for figures in found[name].values()
    )
    return int(is_wrong or bool(OWN & bench.skipped.keys()))


def write_page(report: Report) -> None:
    """Write the page and its picture into the results folder."""
    import plots  # matplotlib takes a second to load, and most runs draw nothing

    (RESULTS / "peers.md").write_text(page(report), "utf-8")
    plots.draw(report.figures, RESULTS / "peers.png")


def write_json(report: Report, path: Path) -> None:
    """Write the report with rounded figures."""
    text = msgspec.json.format(msgspec.json.encode(rounded(msgspec.to_builtins(report))), indent=1)
    path.write_bytes(text + b"\n")


def rounded(value: object) -> object:
    """Return `value` with every float to five significant digits."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case list():
            return [rounded(item) for item in value]
        case _:
            return value


if __name__ == "__main__":
    sys.exit(main())
