"""SAGE as it is installed: a wheel of this checkout, with its compiled modules, in an environment of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from ground import REPOSITORY
from interpreter import interpreter, interpreter_version

__all__ = ["InstallFailed", "install_sage", "sage_python"]

_MARK: Final = "installed.txt"
_SOURCES: Final = ("libs", "services", "native", "configs")
_EXTRAS: Final = "gateway,server,cli"


class InstallFailed(Exception):
    """SAGE cannot be built or installed; says why."""


def sage_python(environment: Path) -> str:
    """Return the interpreter that SAGE is installed for."""
    return str(environment / "bin" / "python")


def install_sage(folder: Path, *, is_compiled: bool) -> None:
    """Build and install the wheel where the sources have changed since. Takes two minutes. Raises InstallFailed."""
    wanted = _fingerprint()
    mark = folder / _MARK
    if mark.exists() and mark.read_text("utf-8") == wanted:
        return
    print("building SAGE's wheel and installing it (two minutes) …", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    _run([interpreter(), "-m", "venv", str(folder)])
    pip = ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([
        sys.executable, *pip, "wheel", "--no-build-isolation", "--no-deps",
        "--config-settings", f"cmake.define.SAGE_COMPILED={'ON' if is_compiled else 'OFF'}",
        "--wheel-dir", str(wheels), str(REPOSITORY),
    ])  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    _run([
        sage_python(folder), *pip, "install", "--constraint", str(REPOSITORY / "configs/constraints.txt"),
        f"{wheel}[{_EXTRAS}]",
    ])  # fmt: skip
    mark.write_text(wanted, "utf-8")


def _run(command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        ["nice", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": path},
    )
    if done.returncode != 0:
        raise InstallFailed("\n".join(done.stdout.splitlines()[-8:]))


def _fingerprint() -> str:
    """Return a digest of everything that the wheel is made of, and of the interpreter that runs it."""
    digest = hashlib.sha256(interpreter_version().encode())
    files = [REPOSITORY / "pyproject.toml"]
    for name in _SOURCES:
        files += (path for path in (REPOSITORY / name).rglob("*") if path.is_file())
    for path in sorted(files):
        if "__pycache__" not in path.parts and path.suffix != ".so":
            digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
