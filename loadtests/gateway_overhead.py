"""What SAGE adds to an engine that takes no time: TTFT, requests/s, SSE tokens/s, CPU per request.

Starts an instance with the emulated engine (profile `zero`, or `paced`: 10 ms between tokens), pins the gateway to
core 0 and everything else, this load generator included, to core 1, and writes
`loadtests/results/gateway_overhead.{json,md}`. Every figure is the median of `--runs` runs in this one process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from http_load import Outcome, closed_loop, open_loop, percentile, poisson_arrivals

from sage_llm_worker.engines.emulated import EmulatedEngine
from sage_wire.messages import Generate, Sampling, TextPrompt, Tokens

RESULTS = Path(__file__).parent / "results"
SAGE = Path(sys.executable).parent / "sage"
CHAT = "/v1/chat/completions"
PROFILES = Path(__file__).parents[1] / "configs" / "engines" / "emulated.toml"
PACED_TOKENS = 128
PROMPT = "Explain in one paragraph how a request travels from the gateway to the engine and back. " * 4


class Instance:
    """A running `sage up` with an emulated engine and no tracing of requests."""

    def __init__(self, profile: str) -> None:
        self.name = f"bench-{profile}"
        self.home = tempfile.TemporaryDirectory(prefix="sage-bench-")
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
        self.environment = os.environ | dict.fromkeys(folders, self.home.name)
        self.environment |= {
            "SAGE_LLM_WORKER__EMULATED__PROFILE": profile,
            "SAGE_TELEMETRY__SAMPLE_RATIO": "0",
            "SAGE_LLM_WORKER__MAX_SEQUENCES": "256",
        }

    def __enter__(self) -> Instance:
        command = [SAGE, "up", "--name", self.name, "--engine", "emulated"]
        log = open(Path(self.home.name) / "up.log", "wb")
        self.process = subprocess.Popen(
            [*command, "--without", "embedding-worker"], env=self.environment, stdout=log, stderr=log
        )
        done = subprocess.run(
            [SAGE, "status", "--name", self.name, "--wait-ready", "60", "--json"],
            env=self.environment, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        self.status: dict[str, Any] = json.loads(done.stdout)
        address = urlsplit(self.status["gateway_url"])
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        self.pids = {actor["kind"]: actor["pid"] for actor in self.status["actors"]}
        nats = [p.pid for p in psutil.Process(self.process.pid).children(True) if "nats" in p.name()]
        self.pids["nats-server"] = nats[0]
        for kind, pid in self.pids.items():
            psutil.Process(pid).cpu_affinity([0 if kind == "gateway" else 1 % (os.cpu_count() or 1)])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.home.cleanup()

    def cpu_seconds(self) -> dict[str, float]:
        """CPU used so far, by process."""
        used = {}
        for kind, pid in self.pids.items():
            times = psutil.Process(pid).cpu_times()
            used[kind] = times.user + times.system
        return used


def body(num_tokens: int, *, is_stream: bool) -> bytes:
    """Return a chat request."""
    request = {
        "model": "auto",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": num_tokens,
        "stream": is_stream,
    }
    return json.dumps(request).encode()


def closed(instance: Instance, concurrency: int, seconds: float, num_tokens: int, *, is_stream: bool) -> dict:
    """One closed-loop run: rates, latency, CPU per 1,000 requests."""
    before = instance.cpu_seconds()
    outcomes, wall = uvloop.run(
        closed_loop(
            instance.host, instance.port, CHAT, body(num_tokens, is_stream=is_stream),
            concurrency=concurrency, seconds=seconds, is_stream=is_stream,
        )
    )  # fmt: skip
    after = instance.cpu_seconds()
    check(outcomes)
    latencies = [o.end - o.due for o in outcomes if o.end is not None]
    result = {
        "requests_per_s": len(outcomes) / wall,
        "latency_p50_ms": percentile(latencies, 0.5) * 1000,
        "latency_p99_ms": percentile(latencies, 0.99) * 1000,
    }
    if is_stream:
        result["tokens_per_s"] = sum(o.num_events for o in outcomes) / wall
        first = [o.first - o.due for o in outcomes if o.first is not None]
        result["ttft_p50_ms"], result["ttft_p99_ms"] = (percentile(first, s) * 1000 for s in (0.5, 0.99))
    for kind in before:
        result[f"cpu_ms_per_request_{kind}"] = (after[kind] - before[kind]) * 1000 / len(outcomes)
    return result


def paced(instance: Instance, streams: int, seconds: float) -> dict:
    """Open loop: about `streams` concurrent streams of 128 tokens, 10 ms apart, through SAGE and without it.

    `added_ttft_*` is the percentile through SAGE less the same percentile of the bare engine in this process,
    with the same arrivals, one right after the other.
    """
    arrivals = poisson_arrivals(streams / (PACED_TOKENS * 0.01), seconds)
    floor = uvloop.run(bare_engine_ttft(arrivals))
    outcomes = uvloop.run(
        open_loop(
            instance.host,
            instance.port,
            CHAT,
            body(PACED_TOKENS, is_stream=True),
            arrivals=arrivals,
            is_stream=True,
        )
    )
    check(outcomes)
    first = [o.first - o.due for o in outcomes if o.first is not None]
    gaps = [gap for o in outcomes for gap in o.gaps]
    return {
        "ttft_p50_ms": percentile(first, 0.5) * 1000,
        "ttft_p99_ms": percentile(first, 0.99) * 1000,
        "added_ttft_p50_ms": (percentile(first, 0.5) - percentile(floor, 0.5)) * 1000,
        "added_ttft_p99_ms": (percentile(first, 0.99) - percentile(floor, 0.99)) * 1000,
        "gap_p50_ms": percentile(gaps, 0.5) * 1000,
        "gap_p99_ms": percentile(gaps, 0.99) * 1000,
    }


async def bare_engine_ttft(arrivals: list[float]) -> list[float]:
    """Return the TTFTs, in seconds, of the paced engine alone under the same arrivals."""
    engine = EmulatedEngine(profile="paced", profiles_file=PROFILES, max_sequences=256)
    await engine.start()
    request = Generate(
        model="auto", prompt=TextPrompt(text=PROMPT), sampling=Sampling(max_tokens=PACED_TOKENS)
    )
    ttfts: list[float] = []

    async def one(n: int, due: float) -> None:
        is_first = True
        async for event in engine.generate(f"bare-{n}", request):
            if is_first and isinstance(event, Tokens):
                ttfts.append(time.monotonic() - due)
                is_first = False

    started = time.monotonic()
    tasks = []
    for n, offset in enumerate(arrivals):
        due = started + offset
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(n, due)))
    await asyncio.gather(*tasks)
    await engine.stop()
    return ttfts


def check(outcomes: list[Outcome]) -> None:
    """A run with a failed request measures nothing."""
    failed = [o for o in outcomes if not (o.is_done and o.status == 200)]
    if failed or not outcomes:
        raise SystemExit(f"{len(failed)} of {len(outcomes)} requests failed; first status {failed[0].status}")


def medians(runs: list[dict]) -> dict[str, float]:
    """Median of each figure."""
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def main() -> int:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    report: dict[str, Any] = {
        "command": "make bench",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "runs": options.runs,
        "scenarios": {},
    }
    with Instance("zero") as instance:
        closed(instance, 16, 1.0, 16, is_stream=False)
        for concurrency in (1, 16, 64):
            name = f"chat, 16 tokens, not streamed, c={concurrency}"
            runs = [
                closed(instance, concurrency, options.seconds, 16, is_stream=False)
                for _ in range(options.runs)
            ]
            report["scenarios"][name] = medians(runs)
        for concurrency in (1, 16, 64):
            name = f"chat, 128 tokens, streamed, no delay, c={concurrency}"
            runs = [
                closed(instance, concurrency, options.seconds, 128, is_stream=True)
                for _ in range(options.runs)
            ]
            report["scenarios"][name] = medians(runs)
    with Instance("paced") as instance:
        for streams in (16, 64):
            name = f"chat, 128 tokens 10 ms apart, {streams} streams, open loop"
            runs = [paced(instance, streams, options.seconds + 2) for _ in range(options.runs)]
            report["scenarios"][name] = medians(runs)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gateway_overhead.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report)
    (RESULTS / "gateway_overhead.md").write_text(text)
    print(json.dumps(report) if options.json else text)
    return 0


COLUMNS = [
    ("scenario", ()),
    ("req/s", ("requests_per_s",)),
    ("SSE tokens/s", ("tokens_per_s",)),
    ("TTFT p50 / p99 ms", ("ttft_p50_ms", "ttft_p99_ms")),
    ("added TTFT p50 / p99 ms", ("added_ttft_p50_ms", "added_ttft_p99_ms")),
    ("latency p50 / p99 ms", ("latency_p50_ms", "latency_p99_ms")),
    ("gap p50 / p99 ms", ("gap_p50_ms", "gap_p99_ms")),
    ("gateway CPU ms/req", ("cpu_ms_per_request_gateway",)),
]


def _cell(row: dict[str, float], keys: tuple[str, ...]) -> str:
    if keys[0] not in row:
        return "-"
    return " / ".join(f"{row[key]:,.0f}" if row[key] >= 1000 else f"{row[key]:.2f}" for key in keys)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a page."""
    lines = [
        "# Gateway overhead",
        "",
        f"`{report['command']}`, {report['date']}, {report['machine']}; medians of {report['runs']} runs. Where the "
        "engine takes no time, TTFT and latency are what gateway, scheduler, NATS and worker add. Where it paces "
        "tokens 10 ms apart, added TTFT is the difference to the same engine called directly under the same "
        "Poisson arrivals. The gateway has core 0 to itself; all else, the load generator included, shares core 1.",
        "",
        "| " + " | ".join(title for title, _ in COLUMNS) + " |",
        "|---" * len(COLUMNS) + "|",
    ]
    for name, row in report["scenarios"].items():
        lines.append("| " + " | ".join([name, *(_cell(row, keys) for _, keys in COLUMNS[1:])]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
