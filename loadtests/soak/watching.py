"""What is sampled of every process while the load runs, and what must be gone when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import psutil
from instance import Instance
from wire_client import Connection, request_bytes

__all__ = ["Sample", "Watch", "left_over"]

PERIOD: Final = 10.0
QUIET_SECONDS: Final = 15.0
SPARE_FDS: Final = 8
_METRIC: Final = re.compile(r"^sage_gateway_in_flight(?:\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)
_TASKS: Final = re.compile(r"^sage_\w*tasks(?:\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)


class Sample(msgspec.Struct, frozen=True):
    """One look at one process. `tasks` is known of the gateway alone, where it has such a metric."""

    process: str
    seconds: float
    rss: float
    fds: int
    threads: int
    tasks: float | None = None
    in_flight: float | None = None


class Watch:
    """Samples every `PERIOD` seconds. A process that is gone or was replaced is noted in `lost`."""

    def __init__(self, instance: Instance) -> None:
        self.samples: list[Sample] = []
        self.lost: list[str] = []
        self._instance = instance
        self._started = time.monotonic()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(PERIOD)

    async def sample(self) -> list[Sample]:
        """Take one sample of every process."""
        metrics = await self._metrics()
        in_flight, tasks = _METRIC.search(metrics), _TASKS.search(metrics)
        seconds = time.monotonic() - self._started
        found = []
        for name, pid in self._instance.pids.items():
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    sample = Sample(
                        process=name,
                        seconds=seconds,
                        rss=process.memory_info().rss / 2**20,
                        fds=process.num_fds(),
                        threads=process.num_threads(),
                    )
            except psutil.NoSuchProcess:
                self._note(f"{name} (pid {pid}) is gone")
                continue
            if name == "gateway":
                sample = msgspec.structs.replace(
                    sample,
                    tasks=float(tasks[1]) if tasks else None,
                    in_flight=float(in_flight[1]) if in_flight else None,
                )
            found.append(sample)
        self.samples += found
        return found

    def _note(self, loss: str) -> None:
        if loss not in self.lost:
            self.lost.append(loss)

    async def _metrics(self) -> str:
        with contextlib.suppress(OSError, EOFError):
            connection = await Connection.open(self._instance.port)
            try:
                await connection.send(request_bytes("GET", "/metrics"))
                return (await connection.body(await connection.head())).decode()
            finally:
                connection.abort()
        return ""


async def left_over(instance: Instance, before: Sequence[Sample], watch: Watch) -> list[str]:
    """Wait a while for silence; return what is still there that was not there `before` the load."""
    until = time.monotonic() + QUIET_SECONDS
    while True:
        found = await _remains(instance, before, watch)
        if not found or time.monotonic() > until:
            return found
        await asyncio.sleep(1.0)


async def _remains(instance: Instance, before: Sequence[Sample], watch: Watch) -> list[str]:
    found = []
    for actor in await instance.actors():
        if actor["epoch"] != instance.epochs.get(actor["id"]):
            found.append(f"{actor['id']} has begun anew: it crashed")
        counts = ("num_in_flight", "num_queued")
        found += [f"{actor['id']} still has {count} = {actor[count]}" for count in counts if actor[count]]
    earlier = {sample.process: sample for sample in before}
    for sample in await watch.sample():
        if sample.in_flight:
            found.append(f"the gateway's metric still has {sample.in_flight:g} requests in flight")
        if sample.fds > earlier[sample.process].fds + SPARE_FDS:
            found.append(
                f"{sample.process} has {sample.fds} descriptors; {earlier[sample.process].fds} before"
            )
    return found
