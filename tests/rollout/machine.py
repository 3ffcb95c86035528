"""Commands on this machine: what is missing is installed, what runs long says so, what fails shows its end."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["BUILD", "ROOT", "CannotRun", "Failed", "install_packages", "output_of", "run", "say"]

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "rollout"

_PACKAGES: Final = {
    "podman": "podman",
    "debootstrap": "debootstrap",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "iptables": "iptables",  # netavark calls it
    "ssh": "openssh-client",
    "openssl": "openssl",
    "c++": "g++",
}
"""Debian packages by the command, or the file, that shows them to be there."""
_TAIL_LINES: Final = 40
_started: Final = time.monotonic()


class CannotRun(Exception):
    """This machine cannot run hosts in containers; the message says why."""


class Failed(Exception):
    """A step went wrong; the message is all that needs to be shown."""


def say(message: str) -> None:
    """Print one line of progress with the time since the start."""
    print(f"[{time.monotonic() - _started:6.1f} s] {message}", flush=True)


def run(
    command: Sequence[str | Path],
    log: Path,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    limit: float = 1800.0,
    shown: Sequence[str] = (),
) -> str:
    """Run a command, its output going to `log`; return the output. Lines that start as `shown` says are shown.

    Raises Failed with the end of the output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    deadline = time.monotonic() + limit
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                lines.append(line)
                if shown and line.startswith(tuple(shown)):
                    say(f"  {line.rstrip(' *' + chr(10))}")
                if time.monotonic() > deadline:
                    raise Failed(f"{command[0]} ran longer than {limit:.0f} s; see {log}")
            status = process.wait(timeout=max(1.0, deadline - time.monotonic()))
        finally:
            if process.poll() is None:
                # What it has started ends with it.
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=30)
    if status != 0:
        tail = "".join(lines[-_TAIL_LINES:])
        raise Failed(f"{tail}status {status} of: {' '.join(map(str, command))}\nall of it: {log}")
    return "".join(lines)


def output_of(
    command: Sequence[str | Path], *, environ: Mapping[str, str] | None = None, limit: float = 120.0
) -> str:
    """Return what a short command prints. Raises Failed with what it says on standard error."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode != 0:
        raise Failed(
            f"status {done.returncode} of: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}".rstrip()
        )
    return done.stdout


def install_packages() -> None:
    """Install what is missing with apt. Raises CannotRun where this is not possible."""
    if sys.platform != "linux" or not Path("/etc/debian_version").exists():
        raise CannotRun("hosts are built with debootstrap, from Debian or Ubuntu")
    if os.geteuid() != 0:
        raise CannotRun("containers with systemd need root: run it as root")
    missing = sorted(
        {package for name, package in _PACKAGES.items() if not _is_there(name)} | _missing_for_python()
    )
    if not missing:
        return
    say(f"installing {', '.join(missing)}")
    environ = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], BUILD / "logs" / "apt-update.log", environ=environ)
    run(
        ["apt-get", "install", "--yes", "--no-install-recommends", *missing],
        BUILD / "logs" / "apt-install.log",
        environ=environ,
    )


def _missing_for_python() -> set[str]:
    """What the wheel is built with: C headers and virtual environments of the Python that runs this."""
    missing = set()
    if importlib.util.find_spec("ensurepip") is None:
        missing.add("python3-venv")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.add("python3-dev")
    return missing


def _is_there(name: str) -> bool:
    if name.startswith("/"):
        return Path(name).exists()
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None
