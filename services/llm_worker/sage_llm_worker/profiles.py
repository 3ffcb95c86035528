"""The step-time profile of the emulated engine, by name: the same files, read by the same code, as the simulator's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sage_core import ConfigurationError
from sage_policy import EngineProfile
from sage_simulator.profiles import engine_files, read_profiles

__all__ = ["ZERO_PROFILE", "load_profile"]

_ZERO: Final = "zero"
ZERO_PROFILE: Final = EngineProfile(description="No delay: measures everything but the engine.")


def load_profile(name: str, file: Path | None = None) -> EngineProfile:
    """Return the profile `name` of `file`, or of all files in `configs/engines/`; `zero` needs none.

    Raises ConfigurationError naming the file and what is wrong with it, or the profiles there are.
    """
    if name == _ZERO and file is None:
        return ZERO_PROFILE
    files = engine_files() if file is None else [file]
    known = {key: found.profile for path in reversed(files) for key, found in read_profiles(path).items()}
    if name in known:
        return known[name]
    if name == _ZERO:
        return ZERO_PROFILE
    place = file or "configs/engines"
    names = ", ".join(sorted({*known, _ZERO}))
    raise ConfigurationError(f"{place} has no profile {name!r}; expected one of {names}")
