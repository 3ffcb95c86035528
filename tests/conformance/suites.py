"""Suites that others wrote and that run as one command: llm-comply and compatcanary."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from conformance.environments import HERE, node_project, pinned, python_environment, say
from conformance.outcome import Exclusion, Failure, Outcome
from conformance.subject import MODEL, Subject

__all__ = ["run_canary", "run_comply"]

_TIMEOUT = 300


def run_comply(form: str, subject: Subject) -> Outcome:
    """Run llm-comply with one of its formats: openai-chat or open-responses. Its warnings become notes."""
    outcome = Outcome(f"llm-comply {form}", versions=pinned(HERE / "requirements" / "comply.txt"))
    program = python_environment("comply").parent / "llm-comply"
    say(outcome.suite)
    command: list[str | Path] = [
        program,
        "--format",
        form,
        "--json",
        "-u",
        f"{subject.url}/v1",
        "-k",
        subject.key,
        "-m",
        MODEL,
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    outcome.seconds = time.monotonic() - began
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        outcome.failures.append(Failure(form, f"no results: {done.stdout[-500:]}{done.stderr[-500:]}"))
        return outcome
    for found in results:
        errors = "; ".join(found.get("errors", ()))
        if found["status"] == "skipped":
            outcome.exclusions.append(Exclusion(found["id"], f"skipped by the suite: {errors}"))
        elif found["status"] == "passed":
            outcome.num_passed += 1
        else:
            outcome.failures.append(Failure(found["id"], errors))
        outcome.notes += [f"`{found['id']}` warns: {warning}." for warning in found.get("warnings", ())]
    return outcome


def run_canary(subject: Subject) -> Outcome:
    """Run compatcanary with all its probes. Warnings count as failures."""
    version = pinned(HERE / "node" / "package.json")["compatcanary"]
    outcome = Outcome("compatcanary", versions={"compatcanary": version})
    say(outcome.suite)
    program = node_project() / "node_modules" / ".bin" / "compatcanary"
    command: list[str | Path] = [
        program,
        "scan",
        "--base-url",
        f"{subject.url}/v1",
        "--model",
        MODEL,
        "--profile",
        "modern",
    ]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--format", "json", "--fail-on", "never"],
        env=os.environ | {"OPENAI_API_KEY": subject.key},
        capture_output=True, text=True, timeout=_TIMEOUT, check=False,
    )  # fmt: skip
    outcome.seconds = time.monotonic() - began
    try:
        results = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        outcome.failures.append(Failure("scan", f"no results: {done.stdout[-500:]}{done.stderr[-500:]}"))
        return outcome
    for found in results:
        if found["status"] == "pass":
            outcome.num_passed += 1
        else:
            detail = json.dumps(found.get("error", "")) if "error" in found else ""
            outcome.failures.append(Failure(found["id"], f"{found['summary']} {detail}"))
    return outcome
