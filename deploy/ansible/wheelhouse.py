#!/usr/bin/env python3
"""Build what hosts install from: SAGE's wheel, the wheels it needs, and one lock file per role.

    OUTPUT/wheels/*.whl       every wheel that some role needs
    OUTPUT/locks/<role>.txt   exact versions with their hashes, for `pip install --no-index --require-hashes`
    OUTPUT/manifest.json      SAGE's version, the Python and machine that the wheels are for, each lock's files

Wheels are for the Python that runs this script and for this machine's architecture: run it with the Python
version of the hosts. Where wheels come from is pip's own configuration. Hosts without a GPU get no CUDA: where
pip would bring CUDA libraries for them, this script says so and stops.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlparse

REPOSITORY: Final = Path(__file__).resolve().parents[2]
CONSTRAINTS: Final = REPOSITORY / "configs" / "constraints.txt"

CPU_ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "nats": ("server", "cli", "gateway"),
    "gateway": ("gateway",),
    "planner": (),
    "scheduler": (),
    "llm-worker": (),
    "llm-worker-transformers": ("llm",),
    "embedding-worker": ("embedding", "offline-models"),
    "operator-worker": ("operator",),
}
"""Extras of pyproject.toml by lock file. The plain llm-worker has the engines that need no weights."""
GPU_ROLES: Final[Mapping[str, tuple[str, ...]]] = {"llm-worker-vllm": ("vllm",)}
"""Resolved apart from the others, without the constraints: vLLM pins its own torch, a CUDA build."""

CUDA: Final = re.compile(r"(nvidia|cuda|triton|cupy)([-_.]|$)")
"""Distributions that a host without a GPU has no use for."""


@dataclass(frozen=True)
class Locked:
    """One line of a lock file."""

    name: str
    version: str
    sha256: str
    file: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


class Refused(Exception):
    """Something the operator must change; the message is the whole of what is printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the wheelhouse; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to build; replaced when complete")
    parser.add_argument("--gpu", action="store_true", help="also what llm-workers on NVIDIA hosts need: vLLM")
    parser.add_argument("--fresh", action="store_true", help="resolve again although nothing asks for it")
    options = parser.parse_args(arguments)
    try:
        build(options.output.resolve(), with_gpu=options.gpu, is_fresh=options.fresh)
    except Refused as refusal:
        print(f"wheelhouse: {refusal}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"wheelhouse: status {error.returncode} of: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


def build(output: Path, *, with_gpu: bool, is_fresh: bool) -> None:
    """Build into a folder beside `output` and move it there once all of it is right."""
    output.parent.mkdir(parents=True, exist_ok=True)
    roles = {**CPU_ROLES, **(GPU_ROLES if with_gpu else {})}
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
        work = Path(folder) / "wheelhouse"
        wheels = work / "wheels"
        wheels.mkdir(parents=True)
        wanted, sources = _fingerprint(roles), _sources()
        last = {} if is_fresh else _manifest(output)
        if (last.get("made_for"), last.get("sources")) == (wanted, sources):
            say(f"{output} is up to date")
            return
        say("building SAGE's wheel")
        # Not the checkout's own build folder: an editable install may be in use there.
        native = f"--config-settings=build-dir={Path(folder) / 'native'}"
        pip("wheel", "--no-deps", native, "--wheel-dir", wheels, REPOSITORY)
        wheel = next(wheels.glob("sage_serve-*.whl"))
        if last.get("made_for") == wanted:
            say("taking the other wheels from the last run: nothing that they depend on has changed")
            _take_over(output / "wheels", wheels)
        else:
            _collect(wheel, wheels, roles)
        manifest = {**_lock_all(work, wheel, roles), "made_for": wanted, "sources": sources}
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        if output.exists():
            shutil.rmtree(output)
        work.rename(output)
    size = sum(file.stat().st_size for file in (output / "wheels").iterdir())
    say(
        f"{output}: {len(list((output / 'wheels').iterdir()))} wheels, {size / 1e6:.0f} MB, {len(roles)} locks"
    )


def _collect(wheel: Path, wheels: Path, roles: Mapping[str, tuple[str, ...]]) -> None:
    """Bring every wheel that `wheel` needs for `roles`; what has no wheel is built."""
    say("collecting wheels for hosts without a GPU")
    extras = sorted({extra for role in CPU_ROLES for extra in roles[role]})
    pip("wheel", "--constraint", CONSTRAINTS, "--wheel-dir", wheels, _requirement(wheel, extras))
    for role in GPU_ROLES.keys() & roles.keys():
        say(f"collecting wheels for {role}")
        pip("wheel", "--wheel-dir", wheels, _requirement(wheel, roles[role]))


def _take_over(source: Path, wheels: Path) -> None:
    for file in source.glob("*.whl"):
        if not file.name.startswith("sage_serve-"):
            os.link(file, wheels / file.name)


def _lock_all(work: Path, wheel: Path, roles: Mapping[str, tuple[str, ...]]) -> dict[str, object]:
    locks = work / "locks"
    locks.mkdir()
    hashes: dict[str, str] = {}
    found: dict[str, list[Locked]] = {}
    for role, extras in roles.items():
        found[role] = _resolve(work / "wheels", wheel, extras, hashes, is_constrained=role in CPU_ROLES)
        if role in CPU_ROLES:
            refuse_cuda(role, found[role])
        head = f"# {role}: sage-serve[{','.join(extras)}]\n"
        (locks / f"{role}.txt").write_text(head + "".join(f"{line}\n" for line in found[role]), "utf-8")
    version = next(line.version for line in found["nats"] if line.name == "sage-serve")
    return {
        "version": version,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(),
        "locks": {role: {line.file: line.sha256 for line in lines} for role, lines in found.items()},
    }


def _resolve(
    wheels: Path, wheel: Path, extras: Sequence[str], hashes: dict[str, str], *, is_constrained: bool
) -> list[Locked]:
    """Return what pip would install from `wheels` alone, sorted by name."""
    arguments: list[str | Path] = ["--isolated", "install", "--dry-run", "--ignore-installed", "--quiet"]
    arguments += ["--no-index", "--find-links", wheels, "--report", "-"]
    if is_constrained:
        arguments += ["--constraint", CONSTRAINTS]
    report = json.loads(pip(*arguments, _requirement(wheel, extras), is_captured=True))
    lines = []
    for item in report["install"]:
        file = wheels / Path(unquote(urlparse(item["download_info"]["url"]).path)).name
        if file.name not in hashes:
            with file.open("rb") as stream:
                hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        lines.append(Locked(name, item["metadata"]["version"], hashes[file.name], file.name))
    return sorted(lines, key=lambda line: line.name)


def refuse_cuda(role: str, lines: Sequence[Locked]) -> None:
    """Raise Refused where a host without a GPU would get CUDA libraries."""
    found = [line.name for line in lines if CUDA.match(line.name)]
    if found:
        raise Refused(
            f"{role} would bring CUDA to hosts without a GPU ({', '.join(found[:4])} …): point pip at CPU builds of "
            f"torch, with PIP_EXTRA_INDEX_URL or, for a local folder, PIP_FIND_LINKS"
        )


def pip(*arguments: str | Path, is_captured: bool = False) -> str:
    """Run pip of this Python; return its standard output where it is captured."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    # Where an index lacks a package, pip warns about each; only what fails is of interest.
    quiet = [] if is_captured else ["--quiet", "--quiet"]
    result = subprocess.run([*command, *quiet], check=True, text=True, stdout=subprocess.PIPE)
    if result.stdout and not is_captured:
        print(result.stdout, end="", file=sys.stderr)
    return result.stdout


def say(message: str) -> None:
    """Tell the operator what is being done."""
    print(f"wheelhouse: {message}", file=sys.stderr, flush=True)


def _requirement(wheel: Path, extras: Sequence[str]) -> str:
    return f"{wheel}[{','.join(extras)}]" if extras else str(wheel)


def _fingerprint(roles: Mapping[str, tuple[str, ...]]) -> str:
    """What the collected wheels depend on; SAGE's own code is not part of it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    needs = [
        project["dependencies"],
        project["optional-dependencies"],
        {role: list(roles[role]) for role in roles},
    ]
    parts = [
        sys.version,
        platform.machine(),
        json.dumps(needs, sort_keys=True),
        CONSTRAINTS.read_text("utf-8"),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sources() -> str:
    """What SAGE's wheel is made of."""
    digest = hashlib.sha256()
    for folder in ("libs", "services", "native", "configs"):
        for file in sorted((REPOSITORY / folder).rglob("*")):
            if file.is_file() and not file.is_symlink() and file.suffix not in (".pyc", ".so"):
                digest.update(f"{file.relative_to(REPOSITORY)}\0{file.stat().st_mode:o}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _manifest(output: Path) -> dict[str, object]:
    """What the last run wrote; nothing where it cannot be read."""
    try:
        return dict(json.loads((output / "manifest.json").read_text("utf-8")))
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main())
