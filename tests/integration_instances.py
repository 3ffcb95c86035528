"""Real instances for tests: `sage up` in a folder of its own, stopped and checked at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SAGE = Path(sys.executable).parent / "sage"


class Instance:
    """A running `sage up`. Use as a context manager."""

    def __init__(
        self, name: str, home: Path, *arguments: str, environment: dict[str, str] | None = None
    ) -> None:
        self.name, self.home = name, home
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        self.environment = os.environ | {folder: str(home) for folder in folders} | (environment or {})
        self.environment["HF_HUB_OFFLINE"] = "1"
        self._arguments = arguments

    def __enter__(self) -> Instance:
        with open(self.home / "up.log", "ab") as log:
            self.process = subprocess.Popen(
                [SAGE, "up", "--name", self.name, *self._arguments],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self.status = self.json("status", "--wait-ready", "90")
        except BaseException:
            self.stop()
            raise
        self.url: str = self.status["gateway_url"]
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a `sage` command against this instance."""
        command = [str(SAGE), *arguments, "--name", self.name]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def json(self, *arguments: str) -> Any:
        """Run a command with `--json` and return what it printed."""
        done = self.run(*arguments, "--json")
        if done.returncode != 0:
            logs = (self.home / "up.log").read_text(errors="replace")[-4000:]
            raise AssertionError(
                f"sage {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}\n{logs}"
            )
        return json.loads(done.stdout)
