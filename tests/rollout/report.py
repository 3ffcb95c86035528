"""loadtests/results/rollout.json and rollout.md: versions, durations, what each run changed, what was checked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rollout.controller import PlaybookRun

__all__ = ["Check", "Report"]


@dataclass(frozen=True)
class Check:
    """One promise that held, how long looking took, and what was seen."""

    name: str
    promise: str
    seconds: float
    facts: dict[str, object]


@dataclass
class Report:
    """Everything that is written down of one run."""

    date: str
    machine: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, PlaybookRun] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write both files."""
        (folder / "rollout.json").write_text(
            json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", "utf-8"
        )
        (folder / "rollout.md").write_text(self.to_markdown(), "utf-8")

    def to_markdown(self) -> str:
        """Return the report as a document."""
        hosts = sorted({host for run in self.runs.values() for host in run.changed} - {"localhost"})
        lines = [
            "# Rollout",
            "",
            f"Output of `make rollout`, {self.date}, on {self.machine}: three hosts (containers with systemd and sshd",
            "on a network without a way out), `deploy/ansible` over SSH with the inventory `cpu-only`. The same as",
            "[JSON](rollout.json).",
            "",
            "## Versions",
            "",
            *(f"- {name} {version}" for name, version in self.versions.items()),
            "",
            "## Runs",
            "",
            f"| | seconds | {' | '.join(f'changed on {host}' for host in hosts)} |",
            f"|---|---:|{'---:|' * len(hosts)}",
        ]
        for name, run in self.runs.items():
            cells = [str(run.changed[host]) if host in run.changed else "" for host in hosts]
            lines.append(f"| {name} | {run.seconds:.0f} | {' | '.join(cells)} |")
        lines += ["", "| preparation | seconds |", "|---|---:|"]
        lines += [f"| {name} | {seconds:.0f} |" for name, seconds in self.seconds.items()]
        lines += ["", "## Checks", ""]
        for check in self.checks:
            lines += [f"**{check.name}** ({check.seconds:.1f} s). {check.promise}", ""]
            for key, value in check.facts.items():
                lines += _fact(key, value)
            lines += [""]
        return "\n".join(lines).rstrip() + "\n"


def _fact(key: str, value: object) -> list[str]:
    """Return the lines of one fact: several lines of text as they are, everything else on one line."""
    if isinstance(value, str) and "\n" in value.strip():
        return [
            f"- {key}:",
            "",
            "  ```text",
            *(f"  {line.rstrip()}".rstrip() for line in value.splitlines()),
            "  ```",
        ]
    if isinstance(value, dict):
        value = ", ".join(f"{name} {item}" for name, item in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return [f"- {key}: {value}"]
