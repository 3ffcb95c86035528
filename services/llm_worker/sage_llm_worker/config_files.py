"""Which model the shipped configuration names for a role."""

from __future__ import annotations

import tomllib

from sage_core import ConfigurationError
from sage_core.config_files import find_config

__all__ = ["configured_model"]


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
