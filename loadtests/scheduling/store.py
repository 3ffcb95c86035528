"""Finished measurements as JSON lines, so that an interrupted run continues where it was."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

import sage_native

__all__ = ["Store", "fingerprint"]


class Store:
    """A file of {key, value} lines; the last line of a key counts. One process writes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        content = file.read_bytes() if file.is_file() else b""
        if content:
            for line in content.splitlines():
                try:
                    row = msgspec.json.decode(line)
                except msgspec.DecodeError:
                    continue  # cut off when the last run was stopped
                self._known[row["key"]] = row["value"]
            if not content.endswith(b"\n"):
                with file.open("ab") as torn:
                    torn.write(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def put(self, key: str, value: Any) -> None:
        """Keep a value, on disk too."""
        self._known[key] = msgspec.to_builtins(value)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode({"key": key, "value": value}) + b"\n")


def fingerprint() -> str:
    """Return a digest of what results depend on: the native code, this folder, its fleets, the profiles."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    native = Path(sage_native.__file__).parent
    files = [
        Path(sage_native._native.__file__),
        native / "__init__.py",
        here / "scenarios.py",
        here / "search.py",
        here / "cells.py",
    ]
    files += [*sorted(here.glob("fleets/*.toml")), *sorted(here.parents[1].glob("configs/engines/*.toml"))]
    files += sorted((here.parents[1] / "libs" / "sage_policy").glob("*.py"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
