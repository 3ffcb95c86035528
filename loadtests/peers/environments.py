"""One virtual environment per peer, made when it is first asked for, with exactly the versions in `requirements/`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from ground import PEERS
from interpreter import interpreter

__all__ = ["executable", "install", "is_installed", "requirements", "version"]

_MARK: Final = "installed.txt"
_OPTIONS: Final = ("--quiet", "--disable-pip-version-check", "--no-cache-dir")


def requirements(peer: str) -> Path:
    """Return the file with the peer's pinned distributions."""
    return PEERS / "requirements" / f"{peer}.txt"


def is_installed(environments: Path, peer: str) -> bool:
    """True where the environment holds what the file pins now, or where there is no such file: it needs none."""
    if not requirements(peer).exists():
        return True
    mark = environments / peer / _MARK
    return mark.exists() and mark.read_bytes() == requirements(peer).read_bytes()


def install(environments: Path, peer: str) -> str:
    """Make the environment anew; return why that failed, empty where it did not. Takes up to minutes."""
    folder = environments / peer
    shutil.rmtree(folder, ignore_errors=True)
    pinned = requirements(peer)
    commands = (
        [interpreter(), "-m", "venv", str(folder)],
        # The files list all dependencies. Nothing is resolved, so a dependency that downloads at install time and
        # is left out of a file stays out.
        [str(folder / "bin" / "python"), "-m", "pip", "install", *_OPTIONS, "--no-deps", "-r", str(pinned)],
    )
    for command in commands:
        done = subprocess.run(["nice", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            shutil.rmtree(folder, ignore_errors=True)
            errors = [
                line for line in done.stdout.splitlines() if "ERROR" in line
            ] or done.stdout.splitlines()
            return errors[0].strip() if errors else f"{command[0]} ended with {done.returncode}"
    shutil.copyfile(pinned, folder / _MARK)
    return ""


def executable(environments: Path, peer: str, name: str) -> str:
    """Return the path of a command of the environment."""
    return str(environments / peer / "bin" / name)


def version(peer: str, distribution: str) -> str:
    """Return the pinned version."""
    for line in requirements(peer).read_text("utf-8").splitlines():
        name, _, pinned = line.partition("==")
        if name == distribution:
            return pinned.strip()
    raise KeyError(f"{requirements(peer)} does not pin {distribution}")
