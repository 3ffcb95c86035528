"""`sage fit-profile`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sage_cli.exits import Exit, fail
from sage_cli.terminal import err

__all__ = ["fit_profile"]


def fit_profile(
    source: Annotated[
        Path, typer.Argument(help="CSV file of measured steps or batches, or folder of layer times.")
    ],
    name: Annotated[str, typer.Option(help="Name of the profile.")] = "measured",
    hardware: Annotated[
        str, typer.Option(help="Which device's files of a folder; may be left out where there is one.")
    ] = "",
    layers: Annotated[int, typer.Option(min=0, help="Decoder layers of the model, for layer times.")] = 0,
    executor: Annotated[str, typer.Option(help="Which executor of a file of batches.")] = "",
    max_sequences: Annotated[
        int, typer.Option(min=1, help="Most sequences per step, items per batch.")
    ] = 256,
    max_step_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per step or batch.")] = 2048,
    max_context: Annotated[int, typer.Option(min=1, help="Longest prompt plus output.")] = 32768,
    kv_tokens: Annotated[int, typer.Option(min=16, help="Tokens that the KV cache holds.")] = 1_000_000,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder with a measured run (requests.jsonl): find the host's overhead from it."),
    ] = None,
    steps: Annotated[int, typer.Option(min=100, help="Steps drawn from layer times.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the steps that are drawn.")] = 0,
) -> None:
    """Fit an engine's step times, print its profile.

    The profile goes into a file of configs/engines/ or of a fleet; `sage simulate`, the scheduler's predictions and the
    emulated engine use it. How well it fits is printed on stderr.

    \b
    Files of steps have the columns prefill, prompts, context, decoding, decode_context, seconds (one step per row:
    prompt tokens computed, of how many prompts, on how many earlier tokens each; decoding sequences and their mean
    length); files of batches have tokens (with padding), items, seconds, and perhaps executor.
    Folders hold dense.csv, attention.csv and per_sequence.csv as LLMServingSim's profiler writes them.

    \b
    Example:  sage fit-profile steps.csv --name my-gpu --kv-tokens 41408
              sage fit-profile profiles/ --hardware RTX4090 --layers 32 --kv-tokens 41408 \\
                --run profiles/
    """
    import msgspec

    from sage_policy import EngineProfile
    from sage_simulator.measured_run import calibrated_host, read_measured_run
    from sage_simulator.measured_tables import fit_layers, fit_table, profile_text

    limits = EngineProfile(
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        max_context=max_context,
        kv_tokens=kv_tokens,
    )
    if source.is_dir():
        if not layers:
            fail(
                "layer times are of one layer; give the model's number of decoder layers with --layers",
                Exit.USAGE,
            )
        fit = fit_layers(source, hardware, limits, num_layers=layers, num_steps=steps, seed=seed)
    else:
        fit = fit_table(source, limits, executor)
    profile = fit.profile
    if run is not None:
        if not fit.decode.count:
            fail("--run is for engines that generate; executors of batches have no such run", Exit.USAGE)
        measured = read_measured_run(run, hardware)
        profile = msgspec.structs.replace(profile, host=calibrated_host(profile, measured))
    for what, found in (("decode-only steps", fit.decode), ("steps with prompts, or batches", fit.mixed)):
        if found.count:
            text = (
                f"{what}: {found.count} fitted, mean error {found.mean:.1%}, 90th percentile {found.p90:.1%}"
            )
            err.print(text, markup=False)
    sys.stdout.write(profile_text(name, profile))
