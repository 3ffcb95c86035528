"""Carry out a supervision: processes, signals, pipes, timers. What to do when is decided in `sage_cli.supervision`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sage_cli.log_files import LogFile
from sage_cli.supervision import (
    Event,
    Exited,
    Finish,
    Kill,
    SetTimer,
    Spawn,
    StopRequested,
    Supervision,
    Terminate,
    Timer,
)

__all__ = ["Launch", "Outcome", "Supervisor"]

_PIPE_LIMIT = 64 * 1024
_LAST_WORDS_TIME = 1.0
_MAX_LAST_LINES = 20
_STATUS_LOOKS = 400
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Launch:
    """What to execute, absolute path first, and its whole environment."""

    arguments: list[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the instance ended; `reason` is empty after a stop that was asked for."""

    status: int
    reason: str


class Supervisor:
    """Runs one `Supervision` to its end. `launch(name)` is called before every start of a process.

    `on_change()` is called after every event, from the event loop; it must not block. Run in the
    main thread: signals arrive there, and the kernel ties the children to the thread that started them.
    """

    def __init__(
        self,
        supervision: Supervision,
        launch: Callable[[str], Launch],
        logs: Path,
        on_change: Callable[[], None],
    ) -> None:
        self.supervision = supervision
        self._launch = launch
        self._logs = {member.name: LogFile(logs, member.name) for member in supervision.members}
        self._on_change = on_change
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None

    def post(self, event: Event) -> None:
        """Hand in an event from the event loop."""
        self._events.put_nowait(event)

    def stop(self) -> None:
        """Stop everything in good order, unless that has begun."""
        if not self.supervision.is_stopping:
            self.post(StopRequested())

    def pid(self, name: str) -> int | None:
        """Return the process id of a member that runs."""
        process = self._processes.get(name)
        return None if process is None else process.pid

    async def run(self, companion: Callable[[], Awaitable[None]]) -> Outcome:
        """Start everything, return when everything has ended. Whatever happens, no process is left.

        `companion` runs beside it and is cancelled at the end; what it raises stops the instance and is raised then.
        """
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.post, StopRequested())
        try:
            async with asyncio.TaskGroup() as tasks:
                beside = tasks.create_task(self._accompany(companion), name="companion")
                outcome = await self._serve(tasks)
                beside.cancel()
            if self._failure is not None:
                raise self._failure
            return outcome
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)
            if self._timer is not None:
                self._timer.cancel()
            for name in list(self._processes):
                self._signal(name, signal.SIGKILL)
            for log in self._logs.values():
                log.close()

    async def _accompany(self, companion: Callable[[], Awaitable[None]]) -> None:
        try:
            await companion()
        except Exception as error:  # raised again by the caller, once everything it started has stopped
            self._failure = error
            self.stop()

    async def _serve(self, tasks: asyncio.TaskGroup) -> Outcome:
        loop = asyncio.get_running_loop()
        commands = self.supervision.start(loop.time())
        while True:
            self._on_change()
            for command in commands:
                match command:
                    case Spawn(name):
                        tasks.create_task(self._run_process(name), name=f"run {name}")
                    case Terminate(name):
                        self._signal(name, signal.SIGTERM)
                    case Kill(name):
                        self._signal(name, signal.SIGKILL)
                    case SetTimer(at):
                        if self._timer is not None:
                            self._timer.cancel()
                        self._timer = loop.call_at(at, self.post, Timer())
                    case Finish(status, reason):
                        return Outcome(status, reason)
            event = await self._events.get()
            commands = self.supervision.handle(event, loop.time())

    async def _run_process(self, name: str) -> None:
        log = self._logs[name]
        last_lines: collections.deque[str] = collections.deque(maxlen=_MAX_LAST_LINES)
        try:
            launch = self._launch(name)
            process = await asyncio.create_subprocess_exec(
                *launch.arguments,
                env=launch.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches us alone, and whatever it starts is killed with it.
                start_new_session=True,
                limit=_PIPE_LIMIT,
            )
        except OSError as error:
            self.post(Exited(name, 127, f"cannot start: {error.strerror or error}"))
            return
        self._processes[name] = process
        if self.supervision.is_stopping:
            # The stop was decided while the process was being created, so its signal found nobody.
            self._signal(name, signal.SIGTERM)
        assert process.stdout is not None
        reader = asyncio.create_task(_copy(process.stdout, log, last_lines), name=f"log {name}")
        try:
            await _ended(process.pid)
        finally:
            # Grandchildren would keep the pipe, and the machine, busy.
            _kill_group(process.pid)
            self._processes.pop(name, None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(reader), _LAST_WORDS_TIME)
            reader.cancel()
        status = await _status(process)
        # The pipe is closed at its end, which may not have been read if somebody else still holds the other end;
        # asyncio has no public way to close it before.
        process._transport.close()  # type: ignore[attr-defined]
        self.post(Exited(name, status, _last_words(last_lines)))

    def _signal(self, name: str, number: int) -> None:
        process = self._processes.get(name)
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)


async def _ended(pid: int) -> None:
    """Return when the process has ended. `Process.wait` also waits for all who hold its pipe, for ever perhaps."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _status(process: asyncio.subprocess.Process) -> int:
    """Return the status of a process that has ended; the event loop hears of it a moment after we do."""
    for _ in range(_STATUS_LOOKS):
        if process.returncode is not None:
            return process.returncode
        await asyncio.sleep(0.005)
    return -signal.SIGKILL


async def _copy(stream: asyncio.StreamReader, log: LogFile, last_lines: collections.deque[str]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            # A line over the pipe's limit: the reader has dropped what it held; go on with the rest.
            log.write(b"(a line over 64 KiB was dropped)")
            continue
        if not line:
            return
        log.write(line)
        last_lines.append(line.decode("utf-8", "replace"))


def _last_words(lines: collections.deque[str]) -> str:
    """Return what a process said of its end: its `sage-…:` lines, else its last line that is no log event."""
    said = [line.strip()[:500] for line in lines if line.strip() and not line.startswith("{")]
    named = [line for line in said if line.startswith("sage-")]
    return "\n".join(named) or (said[-1] if said else "")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
