"""Where files live: XDG base directories, one folder per instance, so two instances never meet."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sage_core.errors import ConfigurationError

__all__ = ["INSTANCE_RULE", "Paths", "is_instance_name"]

INSTANCE_RULE: Final = "1 to 32 of a-z, 0-9 and '-', not starting with '-'"
"""What the name of an instance is, for messages."""
_INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def is_instance_name(name: str) -> bool:
    """True where `name` can name the folders of an instance."""
    return _INSTANCE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one instance. https://specifications.freedesktop.org/basedir-spec/latest/"""

    config: Path
    data: Path
    state: Path
    cache: Path
    runtime: Path

    @classmethod
    def for_instance(cls, instance: str = "default", environ: Mapping[str, str] | None = None) -> Paths:
        """Return the folders of `instance`; nothing is created.

        `config` and `cache` are shared by all instances of a user (settings, model downloads); data, state
        and runtime are not. Raises ConfigurationError for a name outside [a-z0-9-]{1,32}.
        """
        if not is_instance_name(instance):
            raise ConfigurationError(f"instance name is {instance!r}; expected {INSTANCE_RULE}")
        env = os.environ if environ is None else environ
        home = Path(env.get("HOME") or Path.home())

        def base(variable: str, default: Path) -> Path:
            value = env.get(variable, "")
            # The specification says that a relative path is invalid and must be ignored.
            return Path(value) if value.startswith("/") else default

        runtime_default = Path(tempfile.gettempdir()) / f"sage-{os.getuid()}"
        return cls(
            config=base("XDG_CONFIG_HOME", home / ".config") / "sage",
            data=base("XDG_DATA_HOME", home / ".local" / "share") / "sage" / instance,
            state=base("XDG_STATE_HOME", home / ".local" / "state") / "sage" / instance,
            cache=base("XDG_CACHE_HOME", home / ".cache") / "sage",
            runtime=base("XDG_RUNTIME_DIR", runtime_default) / "sage" / instance,
        )

    @property
    def logs(self) -> Path:
        """One log file per actor."""
        return self.state / "logs"

    def create(self) -> None:
        """Create every folder, readable by the user alone."""
        for folder in (self.config, self.data, self.state, self.cache, self.runtime, self.logs):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
