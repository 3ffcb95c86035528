"""The engines whose step times and runs were measured: limits, fits, and what one run says about the host's share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sage_policy import EngineProfile
from sage_simulator.fitting import Fit
from sage_simulator.measured_run import MeasuredRun, calibrated_host, read_measured_run
from sage_simulator.measured_tables import fit_layers

DATA: Final = Path(__file__).parents[1] / "traces" / "costmodel_llmservingsim"
NUM_LAYERS: Final = 32
NUM_STEPS: Final = 10_000
SEED: Final = 0

LIMITS: Final = {
    "RTX4090": EngineProfile(
        description="vLLM 0.19, Llama-3.1-8B bf16, one RTX 4090",
        max_sequences=256,
        max_context=32768,
        kv_tokens=41_408,
    ),
    # The run did not record its KV cache. The same machine was recorded later with 574,608 tokens at 92 % of
    # 101,976,440,832 bytes (LLMServingSim 0acc21b2, meta.json); at 90 % and 128 KiB a token that is 559,040. The run
    # needs less than 200,000.
    "RTXPRO6000": EngineProfile(
        description="vLLM 0.19, Llama-3.1-8B bf16, one RTX PRO 6000",
        max_sequences=128,
        max_context=131_072,
        kv_tokens=559_040,
    ),
}
"""By the name that the files of the measurements carry."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: the fit to its profile (host = 0), the run, and the `host` that this run asks for."""

    hardware: str
    fit: Fit
    run: MeasuredRun
    host: float

    def profile(self, host: float) -> EngineProfile:
        """Return its profile with `host` seconds per step."""
        return msgspec.structs.replace(self.fit.profile, host=host)


def measured_engines(folder: Path = DATA) -> list[Engine]:
    """Fit every engine to its layer times, then calibrate it on its own run. Raises FileMistake."""
    found = []
    for hardware, limits in LIMITS.items():
        fit = fit_layers(folder, hardware, limits, num_layers=NUM_LAYERS, num_steps=NUM_STEPS, seed=SEED)
        run = read_measured_run(folder, hardware)
        found.append(Engine(hardware, fit, run, calibrated_host(fit.profile, run)))
    return found
