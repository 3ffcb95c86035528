"""One `sage up` in folders of its own: started, asked how it is, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

__all__ = ["Instance"]

SAGE: Final = Path(sys.executable).parent / "sage"
READY_SECONDS: Final = 120
STOP_SECONDS: Final = 60.0


class Instance:
    """Used as a context manager. `pids` are those of every process, by name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._home = tempfile.TemporaryDirectory(prefix="sage-soak-")
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        self._environment = os.environ | dict.fromkeys(folders, self._home.name)
        # A token every 10 ms: so there is a middle of a stream to leave in.
        self._environment["SAGE_LLM_WORKER__EMULATED__PROFILE"] = "paced"
        self._environment["HF_HUB_OFFLINE"] = "1"
        self.log = Path(self._home.name) / "up.log"

    def __enter__(self) -> Instance:
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [SAGE, "up", "--name", self._name, "--engine", "emulated", "--port", "0"],
                env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            status = self._read(subprocess.run(
                [*self._status_command(), "--wait-ready", str(READY_SECONDS)],
                env=self._environment, stdout=subprocess.PIPE, check=True,
            ).stdout)  # fmt: skip
        except subprocess.CalledProcessError:
            print(self.log.read_text("utf-8", "replace"), file=sys.stderr)
            self._process.kill()
            self._process.wait()
            raise
        self.port = urlsplit(status["gateway_url"]).port or 80
        self.epochs = {actor["id"]: actor["epoch"] for actor in status["actors"]}
        self.pids = {actor["id"]: actor["pid"] for actor in status["actors"]}
        children = psutil.Process(self._process.pid).children(recursive=True)
        self.pids["nats-server"] = next(child.pid for child in children if "nats-server" in child.name())
        self.pids["sage up"] = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._home.cleanup()

    async def actors(self) -> list[dict[str, Any]]:
        """Return what every actor says of itself now: `num_in_flight`, `num_queued`, `epoch`, …"""
        asked = await asyncio.create_subprocess_exec(
            *self._status_command(), env=self._environment, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asked.communicate()
        found: list[dict[str, Any]] = self._read(output)["actors"]
        return found

    async def stop(self) -> list[str]:
        """Stop in good order; return what was wrong with that."""
        tree = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        try:
            status = await asyncio.to_thread(self._process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return [f"`sage up` did not stop within {STOP_SECONDS:g} s"]
        left = [f"process {process.pid} is left over" for process in tree if process.is_running()]
        return left if status == 0 else [*left, f"`sage up` ended with {status}"]

    def keep_logs(self, folder: Path) -> None:
        """Copy every log of the instance, which goes with it, to `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        home = Path(self._home.name)
        for log in home.rglob("*.log*"):
            kept = folder / log.relative_to(home)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, kept)

    def _status_command(self) -> list[str]:
        return [str(SAGE), "status", "--name", self._name, "--json"]

    def _read(self, output: bytes) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(output)
        return status
