"""`workers = N`: several gateway processes on one port, under one process that keeps them running."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sage_bus.testing import NatsServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

START = Callable[..., "Running"]


class Running:
    def __init__(self, folder: Path, nats: NatsServer, environ: dict[str, str]) -> None:
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(folder / "manager"))
        self.notified.settimeout(30)
        self.log = folder / "gateway.log"
        environment = os.environ | {
            "XDG_CONFIG_HOME": str(folder),
            "XDG_STATE_HOME": str(folder),
            "SAGE_BUS__URL": nats.url,
            "SAGE_GATEWAY__WORKERS": "2",
            "SAGE_GATEWAY__PORT": "0",
            "NOTIFY_SOCKET": str(folder / "manager"),
            **environ,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sage_gateway", "--id", "edge"],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def until_ready(self) -> int:
        """Wait until all are ready; return their port."""
        assert b"READY=1" in self.notified.recv(4096), self.log.read_text()
        (port,) = {
            connection.laddr.port
            for worker in self.workers()
            for connection in worker.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        return int(port)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[START]:
    started: list[Running] = []
    with NatsServer() as nats:

        def one(**environ: str) -> Running:
            running = Running(tmp_path, nats, environ)
            started.append(running)
            return running

        yield one
        for running in started:
            if running.process.poll() is None:
                running.stop()
            running.notified.close()


def status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status
    finally:
        connection.close()


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_workers_share_a_port_and_a_killed_one_comes_back(start: START) -> None:
    running = start()
    port = running.until_ready()
    assert len(running.workers()) == 2
    names = [worker.cmdline()[worker.cmdline().index("--id") + 1] for worker in running.workers()]
    assert sorted(names) == ["edge", "edge-2"]
    assert [status(port) for _ in range(20)] == [200] * 20
    killed = running.workers()[0].pid
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(running.workers()) == 2 and killed not in {worker.pid for worker in running.workers()})
    until(lambda: sum(_listens(worker) for worker in running.workers()) == 2)
    assert [status(port) for _ in range(20)] == [200] * 20
    assert running.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        status(port)


def _listens(process: psutil.Process) -> bool:
    return any(each.status == psutil.CONN_LISTEN for each in process.net_connections("tcp"))


def test_no_worker_outlives_its_parent(start: START) -> None:
    running = start()
    running.until_ready()
    workers = running.workers()
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.wait(10)
    _, alive = psutil.wait_procs(workers, 10)
    assert alive == []


def test_a_taken_port_and_wrong_settings_end_with_status_2_and_one_line(start: START) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = start(SAGE_GATEWAY__PORT=str(port))
        assert running.process.wait(30) == 2
        (line,) = running.log.read_text().splitlines()
        assert str(port) in line


def test_workers_that_find_no_bus_end_as_one_gateway_would(start: START) -> None:
    running = start(SAGE_BUS__URL="nats://127.0.0.1:1", SAGE_BUS__CONNECT_TIMEOUT="200ms")
    assert running.process.wait(60) == 3
