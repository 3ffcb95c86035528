"""`python -m conformance`: run the suites, write the report, end with 0 only where everything required is green."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

from conformance.client_matrix import CLIENTS, run_client
from conformance.environments import BUILD, ROOT, say
from conformance.openapi_fuzz import run_schemathesis
from conformance.oracle import judge
from conformance.outcome import Outcome, write_reports
from conformance.subject import Subject
from conformance.suites import run_canary, run_comply
from conformance.vllm_suite import run_vllm

__all__ = ["main"]

SUITES = ("clients", "comply", "canary", "schemathesis", "vllm")
_RESULTS = ROOT / "loadtests" / "results"


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    asked = _arguments()
    wanted = set(asked.only or SUITES)
    outcomes: list[Outcome] = []
    if wanted - {"vllm"}:
        with Subject(BUILD / "logs" / "sage") as subject:
            say(f"SAGE runs at {subject.url}")
            for suite in SUITES:
                if suite in wanted - {"vllm"}:
                    outcomes += [_told(run()) for run in _runs(suite, asked.match, subject)]
                    outcomes.append(_told(judge(suite, subject.exchanges())))
    if "vllm" in wanted:
        outcome, exchanges = run_vllm(only=asked.match, control=asked.control)
        outcomes.append(_told(outcome))
        if not asked.control:
            outcomes.append(_told(judge("vllm", exchanges)))
    if asked.match is None and not asked.control:
        write_reports(outcomes, _RESULTS, datetime.now(UTC).strftime("%Y-%m-%d"))
        say(f"wrote {_RESULTS.relative_to(ROOT)}/conformance.md")
    if asked.json:
        print(
            json.dumps([asdict(outcome) | {"is_green": outcome.is_green} for outcome in outcomes], indent=1)
        )
    return 0 if outcomes and all(outcome.is_green for outcome in outcomes) else 1


def _runs(suite: str, match: str | None, subject: Subject) -> Iterator[Callable[[], Outcome]]:
    """Yield the runs of one suite against the running instance."""
    if suite == "clients":
        for name in CLIENTS:
            if match is None or match in name:
                yield partial(run_client, name, subject)
    elif suite == "comply":
        for form in ("openai-chat", "open-responses"):
            yield partial(run_comply, form, subject)
    elif suite == "canary":
        yield partial(run_canary, subject)
    elif suite == "schemathesis":
        yield partial(run_schemathesis, subject)


def _told(outcome: Outcome) -> Outcome:
    """Say how a suite went."""
    mark = "green" if outcome.is_green else "RED"
    say(
        f"{mark}: {outcome.suite}: {outcome.num_passed} of {outcome.num_applicable} in {outcome.seconds:.0f} s"
    )
    for failure in outcome.failures:
        detail = " ".join(failure.detail.split())
        say(f"    {failure.name}: {detail[-400:]}")
    return outcome


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("--only", action="append", choices=SUITES, help="a suite to run; may be repeated")
    parser.add_argument("--match", help="only clients, or files of vLLM's tests, whose name has this in it")
    parser.add_argument("--control", action="store_true", help="vLLM's tests against vLLM's own server")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
