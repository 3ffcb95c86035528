"""Where the shipped configuration is: the user's own copy, the checkout, or the installed distribution."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Final

from sage_core.paths import Paths

__all__ = ["config_folders", "find_config"]

_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def config_folders() -> list[Path]:
    """Return the folders that may hold shipped files, first one first; they need not exist.

    The user's configuration folder, `configs/` of a checkout, and `share/sage/configs` of the installation.
    """
    folders = [Paths.for_instance().config]
    if (_CHECKOUT / "pyproject.toml").is_file():
        folders.append(_CHECKOUT / "configs")
    folders.append(Path(sysconfig.get_path("data")) / "share" / "sage" / "configs")
    return folders


def find_config(name: str) -> Path | None:
    """Return the file `name` (such as `engines/emulated.toml`) of the first folder that has it."""
    return next((folder / name for folder in config_folders() if (folder / name).is_file()), None)
