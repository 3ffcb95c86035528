"""`sage config show`, `sage config check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from sage_cli.commands.options import AsJson
from sage_cli.exits import Exit, fail
from sage_cli.terminal import err, print_json

__all__ = ["check", "show"]

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Settings file (TOML).", show_default="$SAGE_CONFIG")
]


def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print every setting with the value in force: environment over file over default.

    Example:  SAGE_GATEWAY__PORT=9000 sage config show
    """
    from sage_cli.settings_check import load_all, shown

    tables = shown(load_all(_environ(config)))
    if as_json:
        print_json(tables)
        return
    for table, values in tables.items():
        print(f"[{table}]")
        for key, value in values.items():
            print(f"{key} = {msgspec.json.encode(value).decode()}")
        print()


def check(config: ConfigFile = None) -> None:
    """Check the settings of all services; exits with 2 and one line per mistake that names key, value and file.

    Example:  sage config check sage.toml
    """
    from sage_cli.settings_check import check_services, load_all

    check_services(load_all(_environ(config)))
    err.print(f"settings are valid{f' ({config})' if config else ''}", markup=False)


def _environ(config: Path | None) -> dict[str, str]:
    if config is None:
        return dict(os.environ)
    if not config.is_file():
        fail(f"settings file {config} does not exist", Exit.USAGE)
    return {**os.environ, "SAGE_CONFIG": str(config)}
