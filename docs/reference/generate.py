"""Write `settings.md` and `openapi.json` beside this file from the code; `--check` fails where one is stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import BaseModel

from sage_actor.help import setting_lines
from sage_core import ServiceSettings
from sage_embedding_worker.settings import EmbeddingWorkerSettings
from sage_gateway.openapi import openapi_document
from sage_gateway.settings import GatewaySettings
from sage_llm_worker.settings import LlmWorkerSettings
from sage_operator_worker.settings import OperatorWorkerSettings
from sage_planner.settings import PlannerSettings
from sage_scheduler.settings import SchedulerSettings

FOLDER = Path(__file__).parent
SERVICES: list[type[ServiceSettings]] = [
    GatewaySettings,
    PlannerSettings,
    SchedulerSettings,
    LlmWorkerSettings,
    EmbeddingWorkerSettings,
    OperatorWorkerSettings,
]

HEAD = """# Settings

Generated from the code by `python docs/reference/generate.py`; do not edit.

One TOML file holds a table per service; `--config FILE` or `$SAGE_CONFIG` names it. `SAGE_<TABLE>__<KEY>` in the
environment overrides the file; lists and tables are written as JSON. Durations are `250ms`, `2s`, `5m`, or a number of
seconds; sizes are `64KiB`, `8MiB`, or a number of bytes. An unknown table, key or `SAGE_` variable is refused by name
with exit status 2. `sage config check FILE` checks a file for all services at once.
"""


def render() -> str:
    """Return the page."""
    shared = {line.key for line in setting_lines(ServiceSettings)}
    parts = [HEAD, *_tables("Every service", ServiceSettings, set())]
    for settings in SERVICES:
        name = settings.__module__.split(".")[0].removeprefix("sage_").replace("_", "-")
        parts += _tables(name, settings, shared)
    return "\n".join(parts).rstrip() + "\n"


def _tables(title: str, settings: type[BaseModel], without: set[str]) -> list[str]:
    lines = [f"## {title}"]
    table = None
    for line in setting_lines(settings):
        if line.key in without:
            continue
        head, _, name = line.key.rpartition(".")
        if head != table:
            lines += ["", f"### `[{head}]`" if head else "### top of the file", ""]
            lines += ["| key | default | |", "|---|---|---|"]
            table = head
        lines.append(f"| `{name}` | `{line.default}` | {line.description} |".replace("\n", " "))
    return [*lines, ""]


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    files = {FOLDER / "settings.md": render(), FOLDER / "openapi.json": openapi_document().decode()}
    is_checked = parser.parse_args().check
    for target, text in files.items():
        if not is_checked:
            target.write_text(text, "utf-8")
        elif not target.exists() or target.read_text("utf-8") != text:
            print(f"{target} is stale: run `make proto`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
