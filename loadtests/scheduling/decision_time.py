"""How long one decision takes: 64 instances, 10,000 requests queued, receipts on, as in a live scheduler.

Times the native call alone and the whole `Policy.handle`, and writes `loadtests/results/scheduler_decision_time.md`.
Exit code 1 where the hybrid policy is over the budget.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_policy import (
    Command,
    ConfiguredPolicy,
    Dispatch,
    Event,
    Finished,
    FirstToken,
    Instance,
    InstanceUp,
    Shed,
    Submitted,
    make_policy,
)
from sage_simulator.profiles import read_profiles

RESULTS = Path(__file__).parents[1] / "results"
BUDGET_MICROSECONDS = 200
POOL = "model"
STEP = 0.002  # seconds between two events
PREFILL = 0.3  # from dispatch to first token
NEVER_LATE, TIGHT = 1000.0, 2.0  # TTFT targets

ENGINES = Path(__file__).parents[2] / "configs" / "engines" / "measured.toml"
PROFILES = ("rtxpro6000", "rtx4090")  # half of the fleet each


@dataclass(slots=True)
class Sample:
    """One call: wall time and CPU time of the native part, wall time with the Python around it."""

    native: int
    native_cpu: int
    facade: int
    commands: list[Command]


@dataclass
class Case:
    """One row of the report."""

    name: str
    samples: list[Sample] = field(default_factory=list)


class TimedCalls:
    """Stands before a native policy and times its last call."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.wall = self.cpu = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._native, name)
        if name == "knows":  # asked by the facade between calls
            return call

        def timed(*arguments: Any) -> Any:
            cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
            result = call(*arguments)
            self.wall, self.cpu = time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
            return result

        return timed


class Driver:
    """A fleet that answers: first tokens follow dispatches, and requests end when they are told to."""

    def __init__(self, policy: str, num_instances: int, slots: int, num_tenants: int, seed: int) -> None:
        made = make_policy(policy, max_queued=10**6, seed=seed)
        assert isinstance(made, ConfiguredPolicy)
        self._policy, self._calls = made, TimedCalls(made.native)
        made.native = self._calls  # type: ignore[assignment]
        self._random = random.Random(seed)
        self._num_tenants = num_tenants
        self._first_tokens: deque[tuple[float, str]] = deque()
        self._submitted = 0
        self.now = 0.0
        self.num_queued = 0
        self.running: list[str] = []
        known = read_profiles(ENGINES)
        profiles = [known[name].profile for name in PROFILES]
        for number in range(num_instances):
            profile = profiles[number * len(profiles) // num_instances]
            self.handle(InstanceUp(Instance(f"instance-{number}", POOL, slots, profile=profile)))

    def handle(self, event: Event) -> Sample:
        """Time one event, and take note of what was commanded."""
        start = time.perf_counter_ns()
        commands = self._policy.handle(event, self.now)
        sample = Sample(self._calls.wall, self._calls.cpu, time.perf_counter_ns() - start, commands)
        for command in commands:
            if isinstance(command, Dispatch):
                self.num_queued -= 1
                self.running.append(command.key)
                self._first_tokens.append((self.now + PREFILL, command.key))
            elif isinstance(command, Shed):
                self.num_queued -= 1
        return sample

    def step(self) -> None:
        """Let some time pass; first tokens come when they are due."""
        self.now += STEP
        while self._first_tokens and self._first_tokens[0][0] <= self.now:
            self.first_token()

    @property
    def has_first_tokens(self) -> bool:
        """True where a running request has no output yet."""
        return bool(self._first_tokens)

    def first_token(self) -> Sample:
        """The request that was dispatched first of those without output has its first token now."""
        return self.handle(FirstToken(self._first_tokens.popleft()[1]))

    def submit(self, ttft: float) -> Sample:
        """A request of random size, tenant and class arrives."""
        self.step()
        self._submitted += 1
        self.num_queued += 1
        chance = self._random
        num_tokens = int(min(8000, chance.lognormvariate(6.8, 1.0))) + 1
        conversation = chance.randrange(500) << 32
        event = Submitted(
            key=f"{self._submitted}/0",
            pool=POOL,
            deadline=self.now + 600.0,
            max_tokens=1024,
            tenant=f"tenant-{chance.randrange(self._num_tenants)}",
            slo_class=chance.choice(("interactive", "interactive", "normal", "batch")),
            num_prompt_tokens=num_tokens,
            ttft_slo=ttft,
            tpot_slo=0.05,
            blocks=tuple(conversation + block for block in range(num_tokens // 512)),
        )
        return self.handle(event)

    def finish(self) -> Sample:
        """One of the running requests ends."""
        self.step()
        at = self._random.randrange(len(self.running))
        self.running[at], self.running[-1] = self.running[-1], self.running[at]
        return self.handle(Finished(self.running.pop(), 1 + int(self._random.expovariate(1 / 200))))

    def fill(self, num_queued: int) -> None:
        """Submit until that many wait."""
        while self.num_queued < num_queued:
            self.submit(NEVER_LATE)


def measure(policy: str, arguments: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of one policy."""

    def driver(slots: int, num_tenants: int) -> Driver:
        return Driver(policy, arguments.instances, slots, num_tenants, arguments.seed)

    for slots, num_tenants, label in (
        (64, 50, "64 slots each"),
        (256, 50, "256 slots each"),
        (64, 5000, "5,000 tenants"),
    ):
        fleet = driver(slots, num_tenants)
        fleet.fill(arguments.queued)
        case = Case(f"submit, {arguments.queued:,} queued, {label}")
        for _ in range(arguments.calls):
            case.samples.append(fleet.submit(NEVER_LATE))
        yield case
        finish = Case(f"finish, {arguments.queued:,} queued, {label}")
        first_token = Case(f"first token, {arguments.queued:,} queued, {label}")
        for _ in range(arguments.calls):
            finish.samples.append(fleet.finish())
            fleet.fill(arguments.queued)
            if fleet.has_first_tokens:
                first_token.samples.append(fleet.first_token())
        yield finish
        yield first_token
    fleet = driver(256, 50)
    case = Case("submit, nothing queued, about 30 running each")
    for _ in range(arguments.calls):
        case.samples.append(fleet.submit(NEVER_LATE))
        while len(fleet.running) > 30 * arguments.instances:
            fleet.finish()
    yield case
    fleet = driver(64, 50)
    fleet.fill(arguments.queued)
    case = Case(f"submit that is too late already, {arguments.queued:,} queued")
    for _ in range(arguments.calls):
        case.samples.append(fleet.submit(1e-3))
    yield case


def quantile(values: list[int], share: float) -> float:
    """Return the quantile in microseconds."""
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] / 1000


def per_decision(sample: Sample) -> int:
    """Return the CPU time of the native part over the requests that it placed or refused."""
    num_decided = sum(isinstance(command, Dispatch | Shed) for command in sample.commands)
    return sample.native_cpu // max(1, num_decided)


def row(policy: str, case: Case) -> str:
    """Return the case's line of the table."""
    columns = (
        [sample.native for sample in case.samples],
        [sample.native_cpu for sample in case.samples],
        [per_decision(sample) for sample in case.samples],
        [sample.facade for sample in case.samples],
    )
    figures = " | ".join(f"{quantile(values, 0.5):.0f} / {quantile(values, 0.99):.0f}" for values in columns)
    num_commands = sum(len(sample.commands) for sample in case.samples) / len(case.samples)
    return f"| {policy} | {case.name} | {figures} | {num_commands:.2f} |"


def report(lines: list[str], arguments: argparse.Namespace, load: float) -> str:
    """Return the whole document."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return "\n".join(
        [
            "# Decision time",
            "",
            f"`make bench-scheduler` runs `python loadtests/scheduling/decision_time.py`; "
            f"{datetime.date.today().isoformat()}, {machine}, load average {load:.1f} at the start. "
            f"{arguments.instances} instances of two kinds, {arguments.calls} calls per row, receipts kept, one pool. "
            f"A native call is one event with the conversion of its commands to Python; `handle` is the call with the "
            f"Python around it. CPU time is that of the calling thread: what else runs on the machine is not in it, "
            f"but for the caches it empties. A call can place or refuse several requests. "
            f"Budget: p99 of the CPU time per decision at most {BUDGET_MICROSECONDS} µs with the hybrid policy.",
            "",
            "| policy | event | native call p50 / p99 µs | its CPU time p50 / p99 µs "
            "| CPU time per decision p50 / p99 µs | whole `handle` p50 / p99 µs | commands per call |",
            "|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--policies", nargs="+", default=["hybrid", "lmetric+hold+shed", "least-outstanding+hold"]
    )
    parser.add_argument("--instances", type=int, default=64)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "scheduler_decision_time.md")
    arguments = parser.parse_args()
    lines, over, load = [], [], os.getloadavg()[0]
    for policy in arguments.policies:
        for case in measure(policy, arguments):
            lines.append(row(policy, case))
            print(lines[-1], flush=True)
            slow = quantile([per_decision(sample) for sample in case.samples], 0.99)
            if policy == "hybrid" and slow > BUDGET_MICROSECONDS:
                over.append(f"{case.name}: {slow:.0f} µs")
    arguments.output.write_text(report(lines, arguments, load))
    print("\n".join(["over the budget:", *over] if over else ["within the budget"]))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
