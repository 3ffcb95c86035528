"""Other people's clients, each in an environment of its own, each with a script of ours that says what held."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from conformance.environments import BUILD, HERE, node_project, pinned, python_environment, say
from conformance.outcome import Failure, Outcome
from conformance.subject import Subject

__all__ = ["CLIENTS", "run_client"]

CLIENTS = (
    "openai_python",
    "openai_node",
    "langchain_client",
    "llamaindex_client",
    "litellm_client",
    "pydantic_ai_client",
    "vercel_ai",
)
_NODE_PACKAGES = {
    "openai_node": ("openai", "zod"),
    "vercel_ai": ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod"),
}
_TIMEOUT = 300


def run_client(name: str, subject: Subject) -> Outcome:
    """Run one client's script and count its promises."""
    outcome = Outcome(f"client {name.removesuffix('_client')}")
    if name in _NODE_PACKAGES:
        versions = pinned(HERE / "node" / "package.json")
        outcome.versions = {package: versions[package] for package in _NODE_PACKAGES[name]}
        command = ["node", str(_beside_its_packages(name))]
    else:
        outcome.versions = pinned(HERE / "requirements" / f"{name}.txt")
        command = [str(python_environment(name)), str(HERE / "clients" / f"{name}.py")]
    say(f"{outcome.suite}: {', '.join(f'{key} {value}' for key, value in outcome.versions.items())}")
    began = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SAGE_", "PYTHON"))}
    log = BUILD / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as errors:
        try:
            done = subprocess.run(
                command, env=environment | subject.environment(), stdout=subprocess.PIPE, stderr=errors,
                text=True, timeout=_TIMEOUT, check=False,
            )  # fmt: skip
            output, ended = done.stdout, f"exit status {done.returncode}; see {log}"
            is_whole = done.returncode == 0
        except subprocess.TimeoutExpired as error:
            output, ended = (error.stdout or b"").decode(), f"not ended after {_TIMEOUT} s; see {log}"
            is_whole = False
    outcome.seconds = time.monotonic() - began
    for line in output.splitlines():
        if not line.startswith('{"name"'):
            continue
        found = json.loads(line)
        if found["is_kept"]:
            outcome.num_passed += 1
        else:
            outcome.failures.append(Failure(found["name"], found["detail"]))
    if not is_whole or outcome.num_applicable == 0:
        outcome.failures.append(Failure(name, ended))
    return outcome


def _beside_its_packages(name: str) -> Path:
    """Return the script where node finds what it imports: modules are looked for in the folders above a file."""
    folder = node_project()
    for script in (f"{name}.mjs", "promises.mjs"):
        (folder / script).write_bytes((HERE / "clients" / script).read_bytes())
    return folder / f"{name}.mjs"
