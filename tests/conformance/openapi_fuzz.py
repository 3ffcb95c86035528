"""schemathesis on SAGE's own OpenAPI document: every operation, examples, edge cases and random data."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from conformance.environments import BUILD, HERE, ROOT, pinned, python_environment, say
from conformance.outcome import Exclusion, Failure, Outcome
from conformance.subject import Subject

__all__ = ["DOCUMENT", "run_schemathesis"]

DOCUMENT = ROOT / "docs" / "reference" / "openapi.json"
_TIMEOUT = 1200
_MAX_EXAMPLES = 30


def run_schemathesis(subject: Subject) -> Outcome:
    """Run all checks of schemathesis; each operation of the document counts as one test."""
    outcome = Outcome("schemathesis", versions=pinned(HERE / "requirements" / "schemathesis.txt"))
    if not DOCUMENT.exists():
        outcome.failures.append(Failure("document", f"{DOCUMENT.relative_to(ROOT)} does not exist"))
        return outcome
    say(f"{outcome.suite}: {_MAX_EXAMPLES} examples for each operation")
    program = python_environment("schemathesis").parent / "schemathesis"
    folder = BUILD / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "schemathesis.json"
    report.unlink(missing_ok=True)
    config = HERE / "schemathesis.toml"
    began = time.monotonic()
    with open(folder / "schemathesis.log", "w") as log:
        done = subprocess.run(
            [
                program, "--config-file", config, "run", DOCUMENT, "--url", subject.url,
                "--header", f"Authorization: Bearer {subject.key}",
                "--max-examples", str(_MAX_EXAMPLES), "--continue-on-failure", "--no-color",
                "--seed", "20", "--request-timeout", "60",
                "--report", "json", "--report-json-path", report,
            ],
            env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE / "clients")},
            stdout=log, stderr=log, timeout=_TIMEOUT, check=False, cwd=BUILD,
        )  # fmt: skip
    outcome.seconds = time.monotonic() - began
    _read_report(outcome, report, done.returncode)
    return outcome


def _read_report(outcome: Outcome, report: Path, status: int) -> None:
    if not report.exists():
        outcome.failures.append(Failure("run", f"exit status {status}; see {report.with_suffix('.log')}"))
        return
    found: dict[str, Any] = json.loads(report.read_text())
    failed = {operation for failure in found["failures"] for operation in failure["operations"]}
    for failure in found["failures"]:
        operations = ", ".join(failure["operations"])
        outcome.failures.append(Failure(failure["title"], f"{failure['code']}: {operations}"))
    outcome.failures += [Failure("error", json.dumps(error)) for error in found["errors"]]
    outcome.num_passed = found["operations"]["tested"] - len(failed)
    outcome.notes.append(
        f"{found['test_cases']['generated']} requests to {found['operations']['tested']} operations."
    )
    outcome.exclusions.append(
        Exclusion("check positive_data_acceptance", "see tests/conformance/schemathesis.toml")
    )
