"""Step-time profiles by name: from a fleet's own [profiles.*] tables or from the files in `configs/engines/`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from sage_core.config_files import config_folders
from sage_policy import EngineProfile
from sage_simulator.mistakes import FileMistake
from sage_simulator.toml_file import Key, Table, load_toml
from sage_simulator.values import Rule, flag, number, whole_number

__all__ = ["PROFILE_KEYS", "KnownProfile", "engine_files", "profile_of", "read_profiles"]

_RULES: Final[dict[str, Rule[Any]]] = {
    "description": Rule(str, "text"),
    **{name: number(0.0, 60.0) for name in ("a0", "a1", "a2", "m0", "m1", "m2", "m3", "m4", "host")},
    "max_sequences": whole_number(1, 1_000_000),
    "max_step_tokens": whole_number(1, 100_000_000),
    "max_context": whole_number(1, 100_000_000),
    "kv_tokens": whole_number(1, 10_000_000_000),
    "block_tokens": whole_number(1, 65_536),
    "watermark": number(0.0, 0.5),
    "async_scheduling": flag(),
}

PROFILE_KEYS: Final[dict[str, Key]] = {
    field.name: Key(_RULES[field.name], field.default) for field in msgspec.structs.fields(EngineProfile)
}
"""The fields of `sage_policy.EngineProfile`, with what a file may say."""


@dataclass(frozen=True, slots=True)
class KnownProfile:
    """A profile and where it stands."""

    profile: EngineProfile
    file: Path
    line: int


def profile_of(table: Table) -> EngineProfile:
    """Return the profile that a table describes. Raises FileMistake."""
    return EngineProfile(**table.read(PROFILE_KEYS))


def read_profiles(file: Path) -> dict[str, KnownProfile]:
    """Return the [profiles.NAME] of a file. Raises FileMistake."""
    top = load_toml(file)
    top.read({}, {"profiles": "[profiles.NAME]"})
    return {
        name: KnownProfile(profile_of(table), file, table.line())
        for name, table in top.named_tables("profiles").items()
    }


def engine_files(names: Iterable[str] = (), beside: Path | None = None) -> list[Path]:
    """Return the files of profiles: those `names`, looked for in `beside` and the configuration folders, else all.

    "All" are the files of `engines/` in the first configuration folder that has one. Raises FileMistake for a name that
    is nowhere.
    """
    folders = [*([beside] if beside else []), *config_folders()]
    if not names:
        folder = next(
            (folder / "engines" for folder in config_folders() if (folder / "engines").is_dir()), None
        )
        return sorted(folder.glob("*.toml")) if folder else []
    files = []
    for name in names:
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is None:
            places = ", ".join(str(folder) for folder in folders)
            raise FileMistake(name, 0, f"does not exist; expected a file of profiles in one of {places}")
        files.append(found)
    return files
