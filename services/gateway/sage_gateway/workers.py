"""`workers = N`: N gateway processes that share one port, kept running by this process, which serves nothing itself.

Each is a gateway of its own, with its own actor id, limits and connections; the kernel spreads connections over them
(SO_REUSEPORT). The first one has the id that was asked for, so that whoever waits for that actor finds it. The kernel
kills all of them where this process dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sage_actor.notify import notify
from sage_actor.parent import die_with_parent
from sage_actor.service import EXIT_BUS, EXIT_CLEAN, EXIT_CONFIGURATION, EXIT_CRASHED
from sage_core import ConfigurationError, new_id
from sage_gateway.http import listen
from sage_gateway.settings import GatewaySection, GatewaySettings
from sage_telemetry import configure, get_logger

__all__ = ["Restarts", "WorkerGroup", "run_workers"]

_SHORT_LIFE: Final = 10.0
"""A worker that ended sooner waits before it is started again."""
_FIRST_DELAY: Final = 0.25
_LONGEST_DELAY: Final = 8.0
_FINAL_CODES: Final = frozenset({EXIT_CONFIGURATION, EXIT_BUS})
"""What a first start that ends so says of all workers; later the same code may pass, e.g. while NATS restarts."""
log = get_logger()


class Restarts:
    """When an ended worker is started again. Pure; one per worker."""

    def __init__(self) -> None:
        self._num_short = 0
        self.has_been_ready = False

    def delay(self, code: int, lived: float) -> float | None:
        """Return after how many seconds to start it again; None: never.

        A clean end that nobody here asked for is a drain of that actor. A first start that fails for reasons that
        hold for all workers ends them all: see `is_final`.
        """
        if code == EXIT_CLEAN or self.is_final(code):
            return None
        if lived >= _SHORT_LIFE:
            self._num_short = 0
            return 0.0
        self._num_short += 1
        # Bounded before the power: a worker that never comes up is tried for years.
        return min(_FIRST_DELAY * 2.0 ** min(self._num_short - 1, 16), _LONGEST_DELAY)

    def is_final(self, code: int) -> bool:
        """True where starting again cannot help, and the others will fare no better."""
        return code in _FINAL_CODES and not self.has_been_ready


class WorkerGroup:
    """Starts the workers, starts them again, passes signals on, and ends with the code that a single one would have."""

    def __init__(self, commands: list[list[str]], environments: Sequence[Mapping[str, str]]) -> None:
        self._commands = commands
        self._environments = environments
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._restarts = [Restarts() for _ in commands]
        self._stopping = asyncio.Event()
        self._code = EXIT_CLEAN
        self._is_ready = False
        self._alive: set[int] = set()
        """Workers that have kept the watchdog quiet since it was told so: one that hangs is a reason to restart all."""

    async def run(self) -> int:
        """Return the exit code once all have ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        async with asyncio.TaskGroup() as group:
            for index in range(len(self._commands)):
                group.create_task(self._keep(index), name=f"worker {index + 1}")
        return self._code

    def worker_said(self, index: int, message: str) -> None:
        """Take what a worker tells its service manager; ours hears what holds for all of them."""
        lines = message.splitlines()
        if "READY=1" in lines:
            self._restarts[index].has_been_ready = True
            if not self._is_ready and all(restarts.has_been_ready for restarts in self._restarts):
                self._is_ready = True
                log.info("gateway_workers_ready", num_workers=len(self._commands))
                notify(f"READY=1\nSTATUS={len(self._commands)} workers")
        if "WATCHDOG=1" in lines:
            self._alive.add(index)
            if len(self._alive) == len(self._commands):
                self._alive.clear()
                notify("WATCHDOG=1")

    async def _keep(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        restarts = self._restarts[index]
        while not self._stopping.is_set():
            started_at = loop.time()
            process = await asyncio.create_subprocess_exec(
                *self._commands[index],
                env=self._environments[index],
                stdin=asyncio.subprocess.DEVNULL,
                # A terminal's Ctrl-C goes to its whole group; workers hear it from us alone, and so once.
                process_group=0,
            )
            self._processes[index] = process
            code = await process.wait()
            del self._processes[index]
            if self._stopping.is_set():
                self._code = self._code or (EXIT_CRASHED if code else EXIT_CLEAN)
                return
            delay = restarts.delay(code, loop.time() - started_at)
            if delay is None:
                if restarts.is_final(code):
                    self._code = code
                    self._stop()
                return
            log.warning("gateway_worker_ended", worker=index + 1, code=code, restart_in=delay)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    def _stop(self) -> None:
        """Let every worker drain; a second time, they are told a second time, and stop at once."""
        if not self._stopping.is_set():
            notify("STOPPING=1")
            self._stopping.set()
        self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)


def run_workers(options: Namespace, settings: GatewaySettings) -> int:
    """Run `settings.gateway.workers` gateways until told to stop; return the exit code.

    Raises ConfigurationError where the port is taken, or our own parent is gone.
    """
    if options.parent_pid is not None and not die_with_parent(options.parent_pid):
        raise ConfigurationError(
            f"--parent-pid is {options.parent_pid}, which is not, or no longer, our parent"
        )
    actor_id = options.id or new_id("gateway", 8)
    own = settings.telemetry.model_copy(update={"metrics_port": 0, "otlp_endpoint": None})
    configure("sage-gateway", f"{actor_id}-workers", own)
    with _reserved(settings.gateway) as reserved:
        port = reserved.getsockname()[1]
        num_workers = settings.gateway.workers
        commands = [_command(options, actor_id, index) for index in range(num_workers)]
        with TemporaryDirectory(prefix="sage-gateway-") as folder:
            paths = [Path(folder) / f"notify-{index + 1}" for index in range(num_workers)]
            environments = [_environment(settings, port, index, path) for index, path in enumerate(paths)]
            return asyncio.run(_run(WorkerGroup(commands, environments), paths))


async def _run(workers: WorkerGroup, paths: list[Path]) -> int:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        for index, path in enumerate(paths):
            listening = loop.create_datagram_endpoint(
                lambda index=index: _NotifySocket(workers, index),  # type: ignore[misc]  # mypy sees no default
                sock=_datagram_socket(path),
            )
            transport, _ = await listening
            stack.callback(transport.close)
        return await workers.run()


class _NotifySocket(asyncio.DatagramProtocol):
    """Where one worker finds its service manager."""

    def __init__(self, workers: WorkerGroup, index: int) -> None:
        self._workers = workers
        self._index = index

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Pass on what the worker says."""
        del addr
        self._workers.worker_said(self._index, data.decode("utf-8", "replace"))


def _datagram_socket(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    made.bind(str(path))
    return made


def _reserved(section: GatewaySection) -> socket.socket:
    """Return a socket that holds the port for the workers without listening on it.

    Others may not share it by mistake: unless that is asked for, the port must be free of any listener.
    """
    if not section.share_port:
        with listen(section) as free:
            port = free.getsockname()[1]
        section = section.model_copy(update={"port": port})
    return listen(section.model_copy(update={"share_port": True}), is_only_bound=True)


def _command(options: Namespace, actor_id: str, index: int) -> list[str]:
    name = actor_id if index == 0 else f"{actor_id}-{index + 1}"
    command = [sys.executable, "-m", "sage_gateway", "--id", name, "--parent-pid", str(os.getpid())]
    return [*command, "--config", options.config] if options.config else command


def _environment(settings: GatewaySettings, port: int, index: int, notify_path: Path) -> dict[str, str]:
    environment = os.environ | {
        "SAGE_GATEWAY__WORKERS": "1",
        "SAGE_GATEWAY__SHARE_PORT": "true",
        "SAGE_GATEWAY__PORT": str(port),
        "NOTIFY_SOCKET": str(notify_path),
    }
    # Names us; the workers' own word goes through `WorkerGroup.worker_said`.
    environment.pop("WATCHDOG_PID", None)
    if settings.telemetry.metrics_port:
        environment["SAGE_TELEMETRY__METRICS_PORT"] = str(settings.telemetry.metrics_port + index)
    return environment
