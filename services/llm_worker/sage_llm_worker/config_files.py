"""Where the shipped configuration is: the user's own copy, the checkout, or the installed distribution."""

from __future__ import annotations

import sysconfig
import tomllib
from pathlib import Path
from typing import Final

from sage_core import ConfigurationError, Paths

__all__ = ["configured_model", "find_config"]

_CHECKOUT: Final = Path(__file__).resolve().parents[3]


def find_config(name: str) -> Path | None:
    """Return the file `name` (such as `engines/emulated.toml`) of the first folder that has it.

    Looked for in the user's configuration folder, in `configs/` of a checkout, and in `share/sage/configs` of
    the installation.
    """
    folders = [Paths.for_instance().config]
    if (_CHECKOUT / "pyproject.toml").is_file():
        folders.append(_CHECKOUT / "configs")
    folders.append(Path(sysconfig.get_path("data")) / "share" / "sage" / "configs")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def configured_model(role: str) -> str | None:
    """Return the model that models.toml names for `role`; None without such a file or entry.

    Raises ConfigurationError for a file that cannot be used.
    """
    file = find_config("models.toml")
    if file is None:
        return None
    try:
        name = tomllib.loads(file.read_text("utf-8")).get("models", {}).get(role)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise ConfigurationError(f"{file} cannot be used: {error}") from None
    if name is not None and not isinstance(name, str):
        raise ConfigurationError(f"{file}: models.{role} = {name!r}; expected a name")
    return name
