"""An hour of mixed load on a whole instance: does anything grow, is anything left over, is any answer wrong?

    python loadtests/soak/soak.py                       an hour, with a report in loadtests/results/soak.{json,md,png}
    python loadtests/soak/soak.py --minutes 5 --no-report

Starts `sage up` with the emulated engine in folders of its own, and has users chat, stream, embed, cancel, leave in the
middle, read slowly and send rubbish. Every 10 s memory, descriptors and threads of every process are sampled; at the
end a line through each of them must not rise beyond its bound, and nothing may be left in flight. Memory is judged in
runs of 30 minutes and more.

Exit status: 0 passed; 1 failed; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import growth
import msgspec
import traffic
from instance import Instance
from soak_report import Report, page
from watching import Sample, Watch, left_over
from wire_client import Connection, request_bytes

RESULTS: Final = Path(__file__).parents[1] / "results"
LOGS: Final = Path(__file__).parents[2] / "build" / "soak-logs"
WARMUP_SHARE: Final = 0.25
MAX_WARMUP: Final = 600.0
MEMORY_SECONDS: Final = 1800.0
"""Shorter runs see bounded buffers fill (spans, receipts, stored responses), so their memory is not judged."""
MAX_EXAMPLES: Final = 20
MODELS: Final = traffic.Models(generate="sage-emulated", embed="all-MiniLM-L6-v2")


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


async def soak(instance: Instance, seconds: float, num_users: int) -> Report:
    """Load for `seconds`, let it go quiet, stop; return what was found."""
    left_out = await unserved(instance.port)
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")
    load = traffic.Traffic(instance.port, MODELS, num_users, frozenset(left_out))
    watch = Watch(instance)
    before = await watch.sample()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.run(), name="watch")
        users = tasks.create_task(load.run(), name="users")
        await progress(load, watch, seconds)
        load.is_stopping = True
        await users
        watching.cancel()
    samples = list(watch.samples)
    remains = await left_over(instance, before, watch)
    remains += await instance.stop()
    warmup = min(MAX_WARMUP, WARMUP_SHARE * seconds)
    return Report(
        command=f"python loadtests/soak/soak.py --minutes {seconds / 60:g}"
        if seconds != 3600
        else "make soak",
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        minutes=seconds / 60,
        warmup_minutes=warmup / 60,
        num_users=num_users,
        counts=dict(load.counts),
        left_out=left_out,
        num_wrong=load.wrong.total(),
        wrong=[f"{count} times: {text}" for text, count in load.wrong.most_common(MAX_EXAMPLES)],
        growth=lines(
            [sample for sample in samples if sample.seconds >= warmup],
            [bound for bound in growth.BOUNDS if bound.figure != "rss" or seconds >= MEMORY_SECONDS],
        ),
        left_over=remains,
        lost=watch.lost,
        samples=samples,
    )


async def unserved(port: int) -> dict[str, str]:
    """Return the behaviours whose route this gateway does not have."""
    connection = await Connection.open(port)
    await connection.send(request_bytes("GET", f"{traffic.RESPONSES}/resp_0"))
    head = await connection.head()
    body = await connection.body(head)
    await connection.close()
    if b"unknown_url" not in body:
        return {}
    return dict.fromkeys(("response_stored", "response_streamed"), "there is no such route")


async def progress(load: traffic.Traffic, watch: Watch, seconds: float) -> None:
    """Return after `seconds`, having said once a minute how it goes."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(60.0, left))
        last = {sample.process: f"{sample.rss:.0f}" for sample in watch.samples}
        say(
            f"{(seconds - max(0.0, until - time.monotonic())) / 60:.0f} of {seconds / 60:.0f} min: "
            f"{sum(load.counts.values()):,} actions, {load.wrong.total():,} wrong; MiB: "
            + ", ".join(f"{name} {rss}" for name, rss in last.items())
        )


def lines(samples: Sequence[Sample], bounds: Sequence[growth.Bound]) -> list[growth.Growth]:
    """Fit each bounded figure of every process."""
    found = []
    for bound in bounds:
        for process in dict.fromkeys(sample.process for sample in samples):
            own = [
                (sample.seconds, float(value))
                for sample in samples
                if sample.process == process and (value := getattr(sample, bound.figure)) is not None
            ]
            if len(own) >= 3:
                found.append(growth.grown(process, bound, *zip(*own, strict=True)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, report; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the load lasts (default 60)")
    parser.add_argument("--users", type=int, default=48, help="users at once (default 48)")
    parser.add_argument("--no-report", action="store_true", help="print the report instead of writing it")
    options = parser.parse_args(arguments)
    if options.minutes < 1:
        parser.error("--minutes is less than 1; a line needs more samples than that gives")
    say(f"starting an instance; then {options.minutes:g} min of load from {options.users} users")
    with Instance(f"soak-{os.getpid()}") as instance:
        report = asyncio.run(soak(instance, options.minutes * 60, options.users))
        if not report.is_passed:
            instance.keep_logs(LOGS)
            say(f"the instance's logs are in {LOGS}")
    if options.no_report:
        print(page(report))
    else:
        from soak_plot import draw  # matplotlib takes a second to load

        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "soak.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(compact(report)), indent=1) + b"\n"
        )
        (RESULTS / "soak.md").write_text(page(report), "utf-8")
        draw(report.samples, RESULTS / "soak.png")
        say(page(report).split("\n\n")[2])
    return 0 if report.is_passed else 1


def compact(report: Report) -> Report:
    """Return the report with one sample a minute, and figures of few digits."""
    kept = [
        msgspec.structs.replace(sample, seconds=round(sample.seconds, 1), rss=round(sample.rss, 1))
        for sample in report.samples
        if sample.seconds % 60 < 10
    ]
    return msgspec.structs.replace(report, samples=kept)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(1)
