"""vLLM's own HTTP tests, from its source archive, against SAGE with the real vLLM engine on tiny models."""

from __future__ import annotations

import ast
import base64
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from conformance.environments import BUILD, HERE, ROOT, python_environment, say, sdist
from conformance.outcome import Exclusion, Failure, Outcome
from conformance.recorder import Exchange

__all__ = ["run_vllm"]

_ENTRYPOINTS = "tests/entrypoints"
_FILE_TIMEOUT = 1500
_ENGINE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def run_vllm(*, only: str | None = None, control: bool = False) -> tuple[Outcome, list[Exchange]]:
    """Run the selected files, or those that match `only`; return what was said over HTTP, too.

    With `control` the tests run against vLLM's own server: what fails there does not apply to tiny models.
    """
    with open(HERE / "vllm" / "selection.toml", "rb") as file:
        selection = tomllib.load(file)
    version = selection["version"]
    outcome = Outcome(
        "vLLM's HTTP tests" + (" (against vLLM itself)" if control else ""),
        versions={"vllm": version},
        share_needed=0.9,
    )
    began = time.monotonic()
    engines = _engine_environment()
    python = python_environment("vllm_tests", no_dependencies=True, beneath=_packages(engines))
    _name_vllm(python, version)
    source = _source(version, python)
    home = _model_home(python, source)
    exchanges: list[Exchange] = []
    reasons: Counter[str] = Counter()
    paths = [file["path"] for file in selection["file"]]
    for path in paths:
        if only is not None and not fnmatch.fnmatch(path, f"*{only}*"):
            continue
        found = _run_file(path, source, python, engines, home, control=control)
        counts = Counter(each["outcome"] for each in found["outcomes"].values())
        say(
            f"vllm {path}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items())) or 'nothing ran'}"
        )
        if not found["outcomes"]:
            outcome.failures.append(Failure(path, f"nothing ran; see {_results(path).with_suffix('.log')}"))
        for nodeid, each in found["outcomes"].items():
            name = nodeid.removeprefix(f"{_ENTRYPOINTS}/")
            if each["outcome"] == "passed":
                outcome.num_passed += 1
            elif each["outcome"] == "excluded":
                reasons[each["detail"]] += 1
            elif each["outcome"] == "skipped":
                reasons[f"skipped by vLLM's own condition: {each['detail'][-160:]}"] += 1
            else:
                outcome.failures.append(Failure(name, each["detail"]))
        exchanges += [_exchange(each) for each in found["exchanges"]]
    outcome.exclusions = [Exclusion("single tests", reason, count) for reason, count in reasons.items()]
    outcome.exclusions += _files_left_out(selection, source, set(paths))
    share = outcome.num_passed / max(1, outcome.num_applicable)
    outcome.notes.append(
        f"Passes {outcome.num_passed} of {outcome.num_applicable} applicable tests ({share:.1%})."
    )
    outcome.seconds = time.monotonic() - began
    return outcome, exchanges


def _engine_environment() -> Path:
    """Return the environment of vLLM's CPU build with this checkout of SAGE."""
    subprocess.run([ROOT / "tests" / "vllm" / "setup_venv.sh"], check=True, stdout=sys.stderr)
    return ROOT / ".venv-vllm"


def _packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def _name_vllm(python: Path, version: str) -> None:
    """Give vLLM's CPU build, packaged as vllm-cpu, the name that its own code and tests ask for."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    folder = packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    program = python.with_name("vllm")
    program.write_text(f'#!/bin/sh\nexec {python} -m vllm.entrypoints.cli.main "$@"\n')
    program.chmod(0o755)


def _source(version: str, python: Path) -> Path:
    folder = BUILD / f"vllm-{version}"
    if not folder.exists():
        # Its build only has to say its name: nothing is compiled.
        environment = os.environ | {"VLLM_TARGET_DEVICE": "empty", "VLLM_VERSION_OVERRIDE": version}
        archive = sdist("vllm", version, python, environment)
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        wanted = tuple(f"vllm-{version}/{part}" for part in ("tests/", "examples/", "pyproject.toml"))
        with tarfile.open(archive) as packed:
            members = [member for member in packed.getmembers() if member.name.startswith(wanted)]
            packed.extractall(unfinished, members, filter="data")
        (unfinished / f"vllm-{version}").rename(folder)
        unfinished.rmdir()
    return folder


def _model_home(python: Path, source: Path) -> Path:
    home = BUILD / "models"
    subprocess.run(
        [python, HERE / "vllm" / "model_hub.py", home, source / _ENTRYPOINTS],
        check=True, env=os.environ | {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}, stdout=sys.stderr,
    )  # fmt: skip
    return home


def _results(path: str) -> Path:
    return BUILD / "logs" / "vllm" / f"{path.removesuffix('.py').replace('/', '.')}.json"


def _run_file(
    path: str, source: Path, python: Path, engines: Path, home: Path, *, control: bool
) -> dict[str, Any]:
    results = _results(path)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.unlink(missing_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SAGE_", "PYTHON"))}
    environment = clean | _ENGINE | {
        "CONFORMANCE_CONTROL": "1" if control else "0",
        "CONFORMANCE_RESULTS": str(results),
        "CONFORMANCE_SAGE": str(Path(sys.executable).parent / "sage"),
        "CONFORMANCE_SAGE_VLLM": str(engines / "bin" / "sage"),
        "HF_HOME": str(home),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{HERE / 'vllm'}:{HERE.parent}",
    }  # fmt: skip
    command: list[str | Path] = [
        python,
        "-m",
        "pytest",
        "-p",
        "against_sage",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "180",
        "-q",
    ]
    with open(results.with_suffix(".log"), "w") as log:
        try:
            subprocess.run(
                [*command, f"{_ENTRYPOINTS}/{path}"], cwd=source, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, timeout=_FILE_TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            say(f"vllm {path}: not ended after {_FILE_TIMEOUT} s")
    if not results.exists():
        return {"outcomes": {}, "exchanges": []}
    found: dict[str, Any] = json.loads(results.read_text())
    return found


def _exchange(fields: dict[str, Any]) -> Exchange:
    bodies = {name: base64.b64decode(fields[name]) for name in ("request_body", "body")}
    return Exchange(**(fields | bodies))


def _files_left_out(selection: dict[str, Any], source: Path, selected: set[str]) -> list[Exclusion]:
    """Count the tests of every other file under tests/entrypoints, each by the first rule that names it."""
    counts: Counter[str] = Counter()
    rules = [(pattern, rule["reason"]) for rule in selection["leave"] for pattern in rule["files"]]
    for file in sorted((source / _ENTRYPOINTS).rglob("test_*.py")):
        path = file.relative_to(source / _ENTRYPOINTS).as_posix()
        if path in selected:
            continue
        text = file.read_text()
        if "RemoteOpenAIServer(" not in text and "RemoteLaunch" not in text:
            reason = "no HTTP: tests of vLLM's own Python classes"
        else:
            reason = next((why for pattern, why in rules if fnmatch.fnmatch(path, pattern)), "")
        if not reason:
            raise ValueError(f"selection.toml says nothing about {path}")
        counts[reason] += _num_tests(text)
    return [Exclusion("whole files", reason, count) for reason, count in sorted(counts.items())]


def _num_tests(text: str) -> int:
    """Count test functions; parameters of a test that is never collected are not known."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return sum(
        isinstance(node, kinds) and node.name.startswith("test_") for node in ast.walk(ast.parse(text))
    )
