"""Writes configs/engines/measured.toml: every engine and executor that was measured, fitted to the step-time formula.

Sources: loadtests/traces/costmodel_llmservingsim (layer times and runs of vLLM), costmodel_splitwise (prefill and
decode times of Llama-2-70B) and loadtests/results/batch_times.csv (`measure_batches.py`). `--check` fails where the
file is stale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import numpy as np
from measured_engines import DATA, Engine, measured_engines

from sage_policy import EngineProfile
from sage_simulator.fitting import Fit, Steps, fit_batches, fit_steps
from sage_simulator.measured_tables import profile_text, read_batches
from sage_simulator.profiles import read_profiles
from sage_simulator.text_files import Limits
from sage_simulator.traces.csv_table import label_column, number_column, read_columns
from sage_simulator.values import number

ROOT: Final = Path(__file__).parents[2]
PROFILES: Final = ROOT / "configs" / "engines" / "measured.toml"
BATCHES: Final = ROOT / "loadtests" / "results" / "batch_times.csv"
SPLITWISE: Final = ROOT / "loadtests" / "traces" / "costmodel_splitwise" / "perf_model.csv.gz"

HEADER: Final = """\
# Step times of engines and executors that were measured. Times in seconds:
#   decode only:    T = host + a0 + a1*N + a2*K
#   with prompts:   T = host + m0 + m1*(c+N) + m2*K + m3*SUM c*(ctx + c/2) + m4*N
#   whole batches:  T = host + m0 + m1*tokens + m4*items
# c prompt tokens on ctx tokens of context, N decoding sequences, K tokens in the KV cache; tokens with padding.
# Errors are those of the fit, mean (90th percentile) of |fitted - measured| / measured.
#
# Written by loadtests/scheduling/fit_profiles.py; edit that, not this.
"""

MODEL_70B_BYTES: Final = 138e9
KV_70B_BYTES: Final = 80 * 2 * 8 * 128 * 2
LARGEST_PREFILL: Final = 8192

LLM_PARAMETERS: Final = 6_979_321_856
"""Of the decoder layers of Llama-3.1-8B, without embeddings and head."""
ENCODER_PARAMETERS: Final = 24 * 12_596_224
"""Of the layers of BERT-large."""

BATCH_DESCRIPTIONS: Final = {
    "embed": "all-MiniLM-L6-v2 embeddings",
    "rerank": "a six-layer cross-encoder (MiniLM-L6)",
    "retrieve": "hybrid retrieval from 10,000 passages of 384 dimensions",
    "split": "splitting of documents; tokens of four characters",
}


def main() -> int:
    """Fit everything; write the file, or compare with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--check", action="store_true", help="fail where the file is not what would be written"
    )
    options = parser.parse_args()
    engines = measured_engines(options.data)
    tables = [_engine_table(engine) for engine in engines]
    tables += [*_splitwise_tables(), *_batch_tables(), *(_derived_table(engine) for engine in engines)]
    text = "\n".join([HEADER, *tables])
    if options.check:
        if not PROFILES.is_file() or PROFILES.read_text("utf-8") != text:
            print(f"{PROFILES} is stale; run {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    PROFILES.write_text(text, "utf-8")
    print(text)
    return 0


def is_shipped(engine: Engine) -> bool:
    """True where the shipped profile is the one that the data give."""
    known = read_profiles(PROFILES).get(_name(engine)) if PROFILES.is_file() else None
    return known is not None and profile_text("x", known.profile) == profile_text(
        "x", engine.profile(engine.host)
    )


def _name(engine: Engine) -> str:
    return engine.hardware.lower()


def _engine_table(engine: Engine) -> str:
    comments = [
        "Source: LLMServingSim 5daddb21 (MIT), profiles of one layer without CUDA graphs, times 32 layers.",
        _errors(engine.fit),
        "host: so that the mean TPOT of its own measured run is met (loadtests/results/simulator_validation.md).",
    ]
    return profile_text(_name(engine), engine.profile(engine.host), comments)


def _splitwise_tables() -> list[str]:
    columns = ("prompt_size", "batch_size", "token_size", "prompt_time", "token_time", "tensor_parallel")
    rule = number(0.0, 1e9)
    table = read_columns(
        SPLITWISE,
        [
            label_column("model"),
            label_column("hardware"),
            *(number_column(name, rule, 0.0, 1e9) for name in columns),
        ],
        Limits(),
    )
    found = []
    for gpu in ("a100", "h100"):
        for degree in (4, 8):
            rows = (
                (table["model"] == "llama2-70b")
                & (table["hardware"] == f"{gpu}-80gb")
                & (table["tensor_parallel"] == degree)
            )
            prompt, batch, output, prefill, decode = (table[name][rows] for name in columns[:-1])
            fits = prompt * batch <= LARGEST_PREFILL
            none, absent = np.zeros(len(prompt)), np.zeros(int(fits.sum()))
            steps = Steps(
                prefill=np.concatenate([(prompt * batch)[fits], none]),
                prompts=np.concatenate([batch[fits], none]),
                context=np.concatenate([absent, none]),
                decoding=np.concatenate([absent, batch]),
                decode_context=np.concatenate([absent, prompt + output / 2]),
            )
            seconds = np.concatenate([prefill[fits], decode]) / 1000
            limits = EngineProfile(
                description=f"Llama-2-70B fp16, {degree} {gpu.upper()} 80 GB",
                max_sequences=256,
                max_context=LARGEST_PREFILL,
                kv_tokens=int((0.9 * degree * 80e9 - MODEL_70B_BYTES) / KV_70B_BYTES) // 16 * 16,
                async_scheduling=False,
            )
            fit = fit_steps(steps, seconds, limits)
            comments = [
                f"Source: splitwise-sim 8f99e7dc (MIT): prefills of up to {LARGEST_PREFILL} tokens, decode steps of",
                "1 to 64 sequences. Both together were not measured (m2 = a2, m4 = 0); the times include the host's.",
                _errors(fit),
                "kv_tokens is derived: 90 % of the memory less 138 GB of weights, at 320 KiB a token.",
            ]
            found.append(profile_text(f"{gpu}-70b-tp{degree}", fit.profile, comments))
    return found


def _batch_tables() -> list[str]:
    found = []
    machine = BATCHES.read_text("utf-8").splitlines()[1].split(",", 5)[5].strip('"')
    for executor, batches in read_batches(BATCHES).items():
        kind, _, dtype = executor.partition("-")
        device = f"one thread of a CPU{f', {dtype}' if dtype else ''}"
        limits = EngineProfile(
            description=f"{BATCH_DESCRIPTIONS[kind]}, {device}",
            max_sequences=64,
            max_step_tokens=8192,
            async_scheduling=False,
        )
        fit = fit_batches(batches.tokens, batches.items, batches.seconds, limits)
        comments = [f"Source: loadtests/scheduling/measure_batches.py on {machine}.", _errors(fit)]
        found.append(profile_text(f"cpu-{executor}", fit.profile, comments))
    return found


def _derived_table(engine: Engine) -> str:
    """An encoder on this GPU, scaled from the LLM by parameters: no GPU was there to measure one."""
    share = ENCODER_PARAMETERS / LLM_PARAMETERS
    fitted = engine.fit.profile
    profile = EngineProfile(
        description=f"DERIVED, not measured: an encoder of BERT-large size (335M) on one {engine.hardware}",
        m0=fitted.a0 * share,
        m1=fitted.m1 * share,
        max_sequences=256,
        max_step_tokens=32_768,
        async_scheduling=False,
    )
    comments = [
        "Derived from the fit above: its time per token (m1) and per step (a0: reading the weights), by parameters:",
        f"{ENCODER_PARAMETERS / 1e6:.0f}M of {LLM_PARAMETERS / 1e6:.0f}M. Attention, tokenizer and launches: left out.",
    ]
    return profile_text(f"{_name(engine)}-encoder-335m-derived", profile, comments)


def _errors(fit: Fit) -> str:
    parts = [
        f"{name} {value.mean:.1%} ({value.p90:.1%}) of {value.count}"
        for name, value in (("decode-only steps", fit.decode), ("steps with prompts", fit.mixed))
        if value.count
    ]
    if not fit.decode.count:
        parts = [f"batches {fit.mixed.mean:.1%} ({fit.mixed.p90:.1%}) of {fit.mixed.count}"]
    return f"Errors: {', '.join(parts)}."


if __name__ == "__main__":
    sys.exit(main())
