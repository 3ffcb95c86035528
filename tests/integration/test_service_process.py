"""A service as a process: exit codes, signals, its service manager, its supervisor, its bus."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sage_bus import Bus, connect
from sage_bus.testing import NatsServer
from sage_core import BusSettings, DeadlineExceeded, Internal, SageError
from sage_wire import CallHeaders, decode, encode, subjects
from sage_wire.headers import ERROR
from sage_wire.messages import Message, Ping, Pong, WireError

pytestmark = pytest.mark.integration

SERVICE = """
import asyncio, sys, time
from sage_actor import Actor, handles, run_service
from sage_core import ConfigurationError, ServiceSettings
from sage_wire.messages import Message

class Hold(Message):
    seconds: float

class Held(Message):
    seconds: float

class Crash(Message):
    pass

class Subject(Actor):
    kind = "subject"

    async def on_start(self) -> None:
        how = sys.argv[1]
        if how == "bad-model":
            raise ConfigurationError("model.path = '/nowhere': no such folder")
        if how == "port-taken":
            raise OSError(98, "Address already in use")
        if how == "slow":
            await asyncio.to_thread(time.sleep, 30)

    @handles
    async def hold(self, request: Hold) -> Held:
        await asyncio.sleep(request.seconds)
        return Held(seconds=request.seconds)

    @handles
    async def crash(self, request: Crash) -> Held:
        raise ZeroDivisionError

if __name__ == "__main__":
    sys.exit(
        run_service(
            kind="subject",
            settings_type=ServiceSettings,
            build=lambda settings, context: Subject(context),
            description="For tests.",
            argv=sys.argv[2:],
        )
    )
"""


class Hold(Message):
    seconds: float


class Held(Message):
    seconds: float


class Crash(Message):
    pass


class Process:
    """The service under test."""

    def __init__(self, script: Path, url: str, how: str = "well", *argv: str, **environ: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.startswith("SAGE_")}
        env |= {"SAGE_BUS__URL": url, "SAGE_TELEMETRY__LOG_FORMAT": "json", **environ}
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, script, how, "--id", "subject-1", *argv],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, within: float = 15.0) -> tuple[int, str]:
        """Return exit code and stderr."""
        _, text = await asyncio.to_thread(self._process.communicate, timeout=within)
        return self._process.returncode, text

    def destroy(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("service") / "subject.py"
    path.write_text(SERVICE)
    return path


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer() as running:
        yield running


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[Bus]:
    made = await connect(BusSettings(url=server.url), name="test")
    yield made
    await made.close()


@pytest.fixture
def run(script: Path, server: NatsServer) -> Iterator[Any]:
    made: list[Process] = []

    def start(how: str = "well", *argv: str, url: str | None = None, **environ: str) -> Process:
        made.append(Process(script, url or server.url, how, *argv, **environ))
        return made[-1]

    yield start
    for process in made:
        process.destroy()


async def ask(bus: Bus, verb: str, message: Message, reply_type: type[Any], budget: float = 5.0) -> Any:
    reply = await bus.request(
        subjects.actor("subject-1", verb),
        encode(message),
        timeout=budget,
        headers=CallHeaders(budget_ms=int(budget * 1000)).encode(),
    )
    if ERROR in reply.headers:
        raise decode(WireError, reply.payload).raised()
    return decode(reply_type, reply.payload)


async def ready(bus: Bus) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                if (await ask(bus, "ping", Ping(), Pong, 0.5)).state == "ready":
                    return
            except SageError:
                pass
            await asyncio.sleep(0.02)


def said(text: str) -> list[str]:
    """The plain lines on stderr, without log events."""
    return [line for line in text.splitlines() if not line.startswith("{")]


async def test_sigterm_finishes_what_runs_and_exits_0(run: Any, bus: Bus) -> None:
    process = run()
    await ready(bus)
    call = asyncio.create_task(ask(bus, "hold", Hold(seconds=0.5), Held))
    await asyncio.sleep(0.1)
    process.signal(signal.SIGTERM)
    assert await call == Held(seconds=0.5)
    code, text = await process.ended()
    assert code == 0
    assert said(text) == []


async def test_a_second_signal_forces_the_exit(run: Any, bus: Bus) -> None:
    process = run()
    await ready(bus)
    call = asyncio.create_task(ask(bus, "hold", Hold(seconds=30), Held, 30.0))
    await asyncio.sleep(0.1)
    process.signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    forced_at = time.monotonic()
    process.signal(signal.SIGTERM)
    code, _ = await process.ended()
    assert code == 1
    assert time.monotonic() - forced_at < 3
    with pytest.raises(SageError, match="is stopping"):
        await call


async def test_sigterm_during_a_start_that_blocks_a_thread_exits_soon(run: Any, bus: Bus) -> None:
    process = run("slow")
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await ask(bus, "ping", Ping(), Pong, 0.5)).state == "starting"
                break
            except SageError:
                await asyncio.sleep(0.02)
    asked_at = time.monotonic()
    process.signal(signal.SIGTERM)
    code, _ = await process.ended()
    assert code == 0
    assert time.monotonic() - asked_at < 8


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("bad-model", 2, "sage-subject: model.path = '/nowhere': no such folder"),
        ("port-taken", 1, "sage-subject: could not start: OSError: [Errno 98] Address already in use"),
    ],
)
async def test_a_failed_start_is_one_line_and_an_exit_code(run: Any, how: str, code: int, line: str) -> None:
    found, text = await run(how).ended()
    assert found == code
    assert said(text) == [line]


async def test_an_unreachable_bus_exits_3_with_one_line_naming_it(run: Any) -> None:
    code, text = await run(url="nats://127.0.0.1:9", SAGE_BUS__CONNECT_TIMEOUT="300ms").ended()
    assert code == 3
    (line,) = said(text)
    assert "127.0.0.1:9" in line


async def test_an_unknown_variable_exits_2(run: Any) -> None:
    code, text = await run(SAGE_BUS__ULR="x").ended()
    assert code == 2
    assert said(text) == ["sage-subject: SAGE_BUS__ULR: unknown key 'bus.ulr'"]


async def test_four_crashes_in_a_row_exit_1(run: Any, bus: Bus) -> None:
    process = run()
    await ready(bus)
    for _ in range(4):
        await ready(bus)
        with pytest.raises(Internal):
            await ask(bus, "crash", Crash(), Held)
    code, _ = await process.ended()
    assert code == 1


class Middleman:
    """A TCP proxy in front of the server that can say a word of its own to every client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: list[asyncio.StreamWriter] = []
        self._copies: list[asyncio.Task[None]] = []

    async def start(self) -> str:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        self._clients.append(writer)
        self._copies += [
            asyncio.create_task(self._copy(reader, to_server)),
            asyncio.create_task(self._copy(from_server, writer)),
        ]

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
        except OSError:
            pass
        finally:
            writer.close()

    def say(self, line: bytes) -> None:
        for client in self._clients:
            client.write(line)

    async def stop(self) -> None:
        self._listener.close()
        await asyncio.gather(*self._copies)


async def test_a_connection_closed_for_good_exits_3(run: Any, bus: Bus, server: NatsServer) -> None:
    middleman = Middleman(server.port)
    process = run(url=await middleman.start())
    await ready(bus)
    # To errors of this kind the client library answers by closing, never to reconnect.
    middleman.say(b"-ERR 'Maximum Payload Violation'\r\n")
    code, text = await process.ended()
    await middleman.stop()
    assert code == 3
    assert "bus_lost_for_good" in text


async def test_a_service_dies_with_its_supervisor(bus: Bus, script: Path, server: NatsServer) -> None:
    supervisor = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond, in a test
        [
            sys.executable,
            "-c",
            "import subprocess, os, sys, time\n"
            f"child = subprocess.Popen([sys.executable, {str(script)!r}, 'well', '--id', 'subject-1',"
            " '--parent-pid', str(os.getpid())])\n"
            "print(child.pid, flush=True); time.sleep(60)",
        ],
        env={**os.environ, "SAGE_BUS__URL": server.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    child = int(supervisor.stdout.readline())
    try:
        await ready(bus)
    finally:
        supervisor.kill()
        supervisor.wait()
        supervisor.stdout.close()
    async with asyncio.timeout(5):
        while _is_running(child):  # noqa: ASYNC110 - not our child: no event tells of its end
            await asyncio.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_the_service_manager_hears_ready_watchdog_and_stopping_but_no_watchdog_without_a_bus(
    run: Any, bus: Bus, server: NatsServer, tmp_path: Path
) -> None:
    path = str(tmp_path / "notify")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)

        async def heard() -> str:
            async with asyncio.timeout(10):
                return (await loop.sock_recv(manager, 256)).decode()

        process = run(NOTIFY_SOCKET=path, WATCHDOG_USEC="300000")
        assert (await heard()).startswith("READY=1\nSTATUS=ready as subject-1")
        assert [await heard() for _ in range(3)] == ["WATCHDOG=1"] * 3
        server.freeze()
        try:
            await asyncio.sleep(0.3)
            _take_all(manager)
            await asyncio.sleep(0.5)
            assert _take_all(manager) == []
        finally:
            server.thaw()
        assert await heard() == "WATCHDOG=1"
        process.signal(signal.SIGTERM)
        while (last_word := await heard()) == "WATCHDOG=1":
            pass
        assert last_word == "STOPPING=1"
    assert (await process.ended())[0] == 0


def _take_all(channel: socket.socket) -> list[bytes]:
    taken = []
    while True:
        try:
            taken.append(channel.recv(256))
        except BlockingIOError:
            return taken


async def test_a_budget_that_crosses_the_network_cuts_the_handler(run: Any, bus: Bus) -> None:
    run()
    await ready(bus)
    reply = await bus.request(
        subjects.actor("subject-1", "hold"),
        encode(Hold(seconds=20)),
        timeout=5.0,
        headers=CallHeaders(budget_ms=100).encode(),
    )
    with pytest.raises(DeadlineExceeded):
        raise decode(WireError, reply.payload).raised()
