"""The processes of one measured system: started on their cores, waited for, accounted with their children, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pinned
import psutil

__all__ = ["CoreTimes", "Launch", "Process", "StartFailed", "stop_all"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS: Final = 8.0
_LAST_BYTES: Final = 2000


class StartFailed(Exception):
    """A process ended, or was not ready in time. The text says which, and what it wrote last."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `is_gateway`: it is what is measured, on the gateway's core; else it goes to the other one.

    `ready_text`: what its log says when the next process may start.
    """

    name: str
    arguments: list[str]
    is_gateway: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_text: str = ""


class Process:
    """A started `Launch`, its output in a file."""

    def __init__(self, launch: Launch, *, core: int, log: Path, is_urgent: bool) -> None:
        self.launch = launch
        self.log = log
        with open(log, "wb") as output:
            self._popen = subprocess.Popen(
                pinned.command(core, launch.arguments, is_urgent=is_urgent),
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    def wait_until_ready(self, seconds: float) -> None:
        """Return once the log holds the launch's `ready_text`. Raises StartFailed."""
        until = time.monotonic() + seconds
        while self.launch.ready_text not in self.log.read_text("utf-8", "replace"):
            if time.monotonic() > until:
                raise StartFailed(
                    f"{self.launch.name} was not ready within {seconds:g} s: {self.last_words()}"
                )
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        """Raise StartFailed if it has ended."""
        if self._popen.poll() is not None:
            raise StartFailed(f"{self.launch.name} ended with {self._popen.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its output."""
        return self.log.read_text("utf-8", "replace")[-_LAST_BYTES:].strip()

    def tree(self) -> list[psutil.Process]:
        """Return the process and its descendants, as far as they live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """CPU time of the tree so far. Time of children that have ended and were waited for counts, too."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def peak_rss_bytes(self) -> int:
        """Return the largest resident sizes so far, summed over the tree."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text("ascii", "replace")
                total += sum(
                    int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")
                )
        return total

    def terminate(self) -> None:
        """Ask the process to stop."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)

    def reap(self) -> None:
        """Wait for a process that has ended."""
        self._popen.wait(_STOP_SECONDS)


def stop_all(processes: Iterable[Process]) -> None:
    """Stop processes and what they started, last first; what does not end in time is killed."""
    started = list(processes)
    trees = [member for process in started for member in process.tree()]
    for process in reversed(started):
        process.terminate()
    _, alive = psutil.wait_procs(trees, timeout=_STOP_SECONDS)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    for process in started:
        process.reap()


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """Seconds a core has worked since boot, and seconds the hypervisor kept it from working."""

    busy: float
    stolen: float

    @classmethod
    def now(cls, core: int) -> CoreTimes:
        """Read /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
        prefix = f"cpu{core} "
        with open("/proc/stat") as file:
            line = next(line for line in file if line.startswith(prefix))
        values = [int(value) / _TICKS for value in line.split()[1:9]]
        return cls(busy=sum(values[:3]) + sum(values[5:7]), stolen=values[7])
