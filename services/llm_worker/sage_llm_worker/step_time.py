"""How long one step of an LLM engine takes: the model behind the emulated engine. Pure.

With `c` prefill tokens on a context of `ctx` tokens, `N` decoding sequences and `K` tokens in the KV cache:

    decode only (c = 0):  T = a0 + a1*N + a2*K
    mixed       (c > 0):  T = m0 + m1*(c+N) + m2*K + m3*SUM c*(ctx + c/2) + m4*N
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from sage_core import ConfigurationError

__all__ = ["ZERO_PROFILE", "StepProfile", "load_profile"]


class StepProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine on one kind of hardware. Coefficients are seconds per unit; limits are the engine's own."""

    description: str = ""
    a0: float = 0.0
    a1: float = 0.0
    a2: float = 0.0
    m0: float = 0.0
    m1: float = 0.0
    m2: float = 0.0
    m3: float = 0.0
    m4: float = 0.0
    max_sequences: int = 256
    max_step_tokens: int = 2048
    max_context: int = 32768
    kv_tokens: int = 1_000_000

    @property
    def is_instant(self) -> bool:
        """True where no step takes any time."""
        return not any((self.a0, self.a1, self.a2, self.m0, self.m1, self.m2, self.m3, self.m4))

    def step_seconds(self, chunks: list[tuple[int, int]], num_decoding: int, num_resident: int) -> float:
        """Return the length of one step.

        `chunks`: (c, ctx) of each sequence in prefill. `num_resident`: tokens in the KV cache before the step.
        """
        if not chunks:
            return self.a0 + self.a1 * num_decoding + self.a2 * num_resident
        num_prefill = sum(size for size, _ in chunks)
        attention = sum(size * (context + size / 2) for size, context in chunks)
        return (
            self.m0
            + self.m1 * (num_prefill + num_decoding)
            + self.m2 * num_resident
            + self.m3 * attention
            + self.m4 * num_decoding
        )


ZERO_PROFILE: Final = StepProfile(description="No delay: measures everything but the engine.")


class _Profiles(msgspec.Struct, forbid_unknown_fields=True):
    profiles: dict[str, StepProfile]


def load_profile(name: str, file: Path | None) -> StepProfile:
    """Return the profile `name`; `zero` needs no file.

    Raises ConfigurationError naming the file and the profiles it has.
    """
    if file is None:
        if name == "zero":
            return ZERO_PROFILE
        raise ConfigurationError(
            f"emulated profile {name!r} needs a file of profiles; set llm_worker.emulated.profiles_file"
        )
    try:
        profiles = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _Profiles).profiles
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"profiles file {file} cannot be used: {error}") from None
    if name not in profiles:
        if name == "zero":
            return ZERO_PROFILE
        known = ", ".join(sorted({*profiles, "zero"}))
        raise ConfigurationError(f"{file} has no profile {name!r}; expected one of {known}")
    return profiles[name]
