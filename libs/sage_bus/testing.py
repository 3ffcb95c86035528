"""A real nats-server for tests: free port, JetStream in a temporary folder, kill and restart at will."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from sage_bus.server_config import render, server_binary
from sage_core import BusUnavailable

__all__ = ["NatsServer", "free_port"]

_START_SECONDS = 10.0


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class NatsServer:
    """A context manager that starts nats-server with SAGE's own configuration template.

    The port and the stored streams stay the same over `kill` and `start`. `sync_always` is off by default: no
    test cuts the power, and disks of test machines are slow. `extra_config` is appended to the file.
    """

    def __init__(self, *, port: int | None = None, sync_always: bool = False, extra_config: str = "") -> None:
        self.port = port if port is not None else free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="sage-nats-")
        self._sync_always = sync_always
        self._extra_config = extra_config
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int:
        """The server's process id; raises BusUnavailable while it is stopped."""
        if self._process is None:
            raise BusUnavailable("the server is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        path = Path(self._folder.name) / "server.log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Start the server and wait until it accepts clients. Raises BusUnavailable with the server's log."""
        folder = Path(self._folder.name)
        config = self._write_config()
        with (folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(), "-c", config], stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as peer:
                if peer.recv(5) == b"INFO ":
                    return
            time.sleep(0.01)
        self.kill()
        raise BusUnavailable(f"nats-server did not start:\n{self.log}")

    def kill(self) -> None:
        """End it as `kill -9` does. Idempotent."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order. Idempotent."""
        self._end(signal.SIGTERM)

    def reload(self, extra_config: str) -> None:
        """Change what is appended to the configuration, without a restart."""
        self._extra_config = extra_config
        self._write_config()
        os.kill(self.process_id, signal.SIGHUP)

    def freeze(self) -> None:
        """Stop it from running without closing a socket, as a dead host or a full disk does."""
        os.kill(self.process_id, signal.SIGSTOP)
        deadline = time.monotonic() + 1
        # The signal is sent, not delivered: other threads of the server run on for a moment.
        while not self._is_stopped() and time.monotonic() < deadline:
            time.sleep(0.001)

    def thaw(self) -> None:
        """Undo `freeze`."""
        os.kill(self.process_id, signal.SIGCONT)

    def _write_config(self) -> Path:
        folder = Path(self._folder.name)
        text = render(
            port=self.port,
            store_dir=folder / "jetstream",
            max_file_store=2**30,
            sync_always=self._sync_always,
        )
        config = folder / "nats.conf"
        config.write_text(text + self._extra_config)
        return config

    def _is_stopped(self) -> bool:
        threads = Path(f"/proc/{self.process_id}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()
