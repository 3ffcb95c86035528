"""What a suite found, and the report of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Exclusion", "Failure", "Outcome", "write_reports"]


@dataclass(frozen=True)
class Failure:
    """A promise that was not kept."""

    name: str
    detail: str


@dataclass(frozen=True)
class Exclusion:
    """Tests that were not counted, and why."""

    name: str
    reason: str
    num_tests: int = 1


@dataclass
class Outcome:
    """One suite against SAGE. `share_needed` of its tests must pass for it to be green."""

    suite: str
    num_passed: int = 0
    failures: list[Failure] = field(default_factory=list)
    exclusions: list[Exclusion] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    share_needed: float = 1.0

    @property
    def num_applicable(self) -> int:
        return self.num_passed + len(self.failures)

    @property
    def is_green(self) -> bool:
        return self.num_passed > 0 and self.num_passed >= self.share_needed * self.num_applicable


def write_reports(outcomes: Sequence[Outcome], folder: Path, when: str) -> None:
    """Write conformance.json and conformance.md; suites that did not run this time keep what they said last."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "conformance.json"
    suites = json.loads(place.read_text())["suites"] if place.exists() else {}
    for outcome in outcomes:
        suites[outcome.suite] = {
            "when": when,
            "is_green": outcome.is_green,
            "num_applicable": outcome.num_applicable,
            **asdict(outcome),
        }
    place.write_text(json.dumps({"suites": suites}, indent=1, ensure_ascii=False) + "\n")
    (folder / "conformance.md").write_text(_markdown(suites))


def _markdown(suites: dict[str, dict[str, object]]) -> str:
    lines = [
        "# Conformance",
        "",
        "Written by `make conformance`: other people's clients and test suites against a running SAGE.",
        "",
        "| suite | passed | needed | took | when | versions |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in suites.items():
        outcome = _outcome(found)
        mark = "" if outcome.is_green else " **red**"
        versions = ", ".join(f"{key} {value}" for key, value in outcome.versions.items())
        lines.append(
            f"| {name} | {outcome.num_passed} of {outcome.num_applicable}{mark} | {outcome.share_needed:.0%} | "
            f"{outcome.seconds:.0f} s | {found['when']} | {versions} |"
        )
    for name, found in suites.items():
        outcome = _outcome(found)
        if outcome.notes or outcome.failures or outcome.exclusions:
            lines += ["", f"## {name}", ""]
            lines += [f"- {note}" for note in outcome.notes]
        if outcome.failures:
            lines += ["", "Failed:", ""]
            lines += [f"- `{each.name}`: {_one_line(each.detail)}" for each in outcome.failures]
        if outcome.exclusions:
            count = sum(each.num_tests for each in outcome.exclusions)
            lines += ["", f"Not counted ({count}):", ""]
            lines += [f"- `{each.name}` ({each.num_tests}): {each.reason}" for each in outcome.exclusions]
    return "\n".join(lines) + "\n"


def _outcome(found: dict[str, object]) -> Outcome:
    known = {key: value for key, value in found.items() if key in Outcome.__dataclass_fields__}
    outcome = Outcome(**known)  # type: ignore[arg-type]
    outcome.failures = [Failure(**each) for each in found["failures"]]  # type: ignore[attr-defined]
    outcome.exclusions = [Exclusion(**each) for each in found["exclusions"]]  # type: ignore[attr-defined]
    return outcome


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= 300 else line[:299] + "…").replace("|", "\\|")
