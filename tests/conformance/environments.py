"""Virtual environments and node projects of the suites, under build/conformance: made once per set of pins."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["BUILD", "HERE", "ROOT", "node_project", "pinned", "python_environment", "say", "sdist"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "conformance"


def say(text: str) -> None:
    """Tell on stderr how far it is."""
    print(f"conformance: {text}", file=sys.stderr, flush=True)


def pinned(requirements: Path) -> dict[str, str]:
    """Return the versions that a requirements file or a package.json pins by name."""
    if requirements.suffix == ".json":
        found: dict[str, str] = json.loads(requirements.read_text())["dependencies"]
        return found
    lines = [line.split("#")[0].strip() for line in requirements.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line]
    return {name.split("[")[0]: version for name, version in pairs}


def python_environment(name: str, *, no_dependencies: bool = False, beneath: Path | None = None) -> Path:
    """Return the Python of the environment that requirements/<name>.txt describes.

    `beneath` is the site-packages folder of another environment whose packages it sees below its own.
    """
    requirements = HERE / "requirements" / f"{name}.txt"
    folder = BUILD / "venvs" / name
    python = folder / "bin" / "python"
    stamp = folder / ".complete"
    wanted = _digest(requirements.read_bytes(), sys.version.encode(), str(beneath).encode())
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"installing {name}: {', '.join(f'{key} {value}' for key, value in pinned(requirements).items())}")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if beneath is not None:
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "beneath.pth").write_text(f"import site; site.addsitedir({str(beneath)!r})\n")
    options: list[str | Path] = ["--no-deps"] if no_dependencies else []
    command: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-warn-conflicts",
        *options,
    ]
    subprocess.run([*command, "--requirement", requirements], check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return python


def node_project() -> Path:
    """Return the folder of the node project that node/package.json describes, installed."""
    package = HERE / "node" / "package.json"
    folder = BUILD / "node"
    stamp = folder / ".complete"
    wanted = _digest(package.read_bytes())
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    say(f"installing node packages: {', '.join(f'{key} {value}' for key, value in pinned(package).items())}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(package, folder)
    command: list[str | Path] = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--no-package-lock",
    ]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    stamp.write_text(wanted)
    return folder


def sdist(name: str, version: str, python: Path, environment: dict[str, str]) -> Path:
    """Return the source archive of a package, downloaded by pip; `python` has what its build asks for."""
    folder = BUILD / "sdists"
    place = folder / f"{name}-{version}.tar.gz"
    if not place.exists():
        say(f"downloading the source of {name} {version}")
        folder.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [
            python,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        options: list[str | Path] = [
            "--no-binary",
            name,
            "--no-build-isolation",
            "--dest",
            folder,
            f"{name}=={version}",
        ]
        subprocess.run([*command, *options], check=True, stdout=sys.stderr, env=environment)
    return place


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
