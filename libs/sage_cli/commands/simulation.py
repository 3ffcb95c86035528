"""`sage simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_cli.exits import Exit, fail
from sage_cli.terminal import err, out

__all__ = ["simulate"]


def simulate(
    trace: Annotated[
        str, typer.Option(help="Trace file, plain or .gz, or its folder; its format is found in the content.")
    ],
    fleet: Annotated[
        str,
        typer.Option(help="Fleet file (TOML) or a shipped one: homogeneous, mixed, rag, embedding, large."),
    ] = "mixed",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE.py:CLASS",
            help="Policy; may be repeated.",
            show_default="hybrid, least-outstanding",
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="R",
            help="Runs per second, by compressing time; may be repeated.",
            show_default="the trace's own",
        ),
    ] = None,
    rates: Annotated[str | None, typer.Option(metavar="LOW:HIGH:STEP", help="Many rates.")] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=1000, help="Simulations per point; with 2 or more each resamples the trace."),
    ] = 1,
    first_seed: Annotated[int, typer.Option(min=0, max=4_294_967_295, help="Number of the first seed.")] = 0,
    begin: Annotated[
        str | None, typer.Option("--from", metavar="TIME|%", help="Use the trace from here, e.g. 10m or 50%.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--until", metavar="TIME|%", help="Use the trace up to here.")
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="A class of work and its targets, e.g. tight:share=30%,ttft=500ms+in/8000,tpot=40ms; may be repeated.",
            show_default="chat:ttft=1s+in/4000,tpot=50ms and embedding:e2e=250ms",
        ),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File with [[class]] tables, instead of --slo.")
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Give sessions to tenants; may be repeated."),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE,pool=NAME,rate=R",
            help="A second trace beside the first, as embeddings; may be repeated.",
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, max=10_000_000, help="Limit that clients send; true lengths are hidden from the policy."
        ),
    ] = 4096,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="azure, burstgpt, mooncake, ragpulse, ragpulse-pieces or servegen.",
            show_default="from the content",
        ),
    ] = None,
    head: Annotated[
        int, typer.Option(min=0, max=1_000_000_000, help="Read this many rows only; 0: all.")
    ] = 0,
    block_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            max=65_536,
            help="Tokens of one prefix block; 0: the format's own (mooncake 512, ragpulse 64).",
        ),
    ] = 0,
    rerank: Annotated[bool, typer.Option(help="Whether RAG runs rerank their passages.")] = True,
    clients: Annotated[
        int, typer.Option(min=0, max=1_000_000_000, help="servegen: the busiest clients only; 0: all.")
    ] = 0,
    resampling: Annotated[
        str, typer.Option(help="How seeds change the trace: auto, blocks, sessions or none.")
    ] = "auto",
    quiet_day: Annotated[
        bool, typer.Option("--quiet-day", help="Leave the fleet's disturbances out.")
    ] = False,
    capacity: Annotated[
        bool,
        typer.Option(
            "--capacity", help="Find the highest rate at --target between the lowest and highest rate."
        ),
    ] = False,
    target: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Attainment that --capacity asks for.")
    ] = 0.99,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE|-", help="Write everything as JSON; -: on stdout, no table."),
    ] = None,
    plots: Annotated[
        str | None, typer.Option(metavar="DIR", help="Draw plots (PNG) into this folder.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Simulations at a time.")] = 1,
    time_decisions: Annotated[
        bool, typer.Option("--time-decisions", help="Measure how long the policy's decisions take.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Verify that tokens, blocks and requests are conserved (slower).")
    ] = False,
) -> None:
    """Replay a trace on a simulated fleet, compare policies.

    Simulates engines that batch as vLLM does, with the policies that run live, and shows who meets which targets.

    Policies: hybrid; hybrid-LAYER without one of admission, fair, hold, placement, batcher, learning; the baselines
    round-robin, random, least-outstanding, least-tokens, power-of-two, cache-aware, dynamo-cost, lmetric,
    predicted-headroom, fcfs, edf, sjf, vtc, each also with +hold, +shed, +window5, +window10; or a class of your own.

    Attainment is good / submitted: finished, and within the class's targets from the scheduled send on.

    \b
    Example:  sage simulate --trace AzureLLMInferenceTrace_conv.csv --rates 8:24:2 \\
                --policy hybrid --policy lmetric+hold+shed --plots plots
    \b
    The second half of a trace, five samples of it, on four equal GPUs:
              sage simulate --trace conversation_trace.jsonl --fleet homogeneous \\
                --rate 2 --seeds 5 --from 50%
    \b
    RAG pipelines, with a target of their own, as JSON:
              sage simulate --trace ragpulse/ --fleet rag --rate 8 \\
                --slo rag:ttft=2s,tpot=50ms --json -
    \b
    The highest rate at which your own policy keeps 99 % of its targets:
              sage simulate --trace conv.csv --policy mypolicy.py:MyPolicy \\
                --rates 4:24:2 --capacity
    """
    from sage_cli.simulation_plan import SimulationRequest, make_plan
    from sage_cli.simulation_run import check_outputs, find_capacities, run_plan, warnings, write_json
    from sage_cli.simulation_tables import capacity_table, detail_tables, heading, result_table

    check_outputs(json_file, plots)
    if plots is not None:
        from sage_simulator.plots import require_matplotlib

        require_matplotlib()
    plan = make_plan(
        SimulationRequest(
            trace=trace,
            fleet=fleet,
            policies=policy or ["hybrid", "least-outstanding"],
            rate=rate or [],
            rates=rates,
            num_seeds=seeds,
            first_seed=first_seed,
            begin=begin,
            end=end,
            slo=slo or [],
            classes_file=classes,
            tenants=tenant or [],
            mix=mix or [],
            format=format,
            head=head,
            block_tokens=block_tokens,
            has_rerank=rerank,
            max_clients=clients,
            max_tokens=max_tokens,
            resampling=resampling,
            is_quiet_day=quiet_day,
        )
    )
    is_quiet = json_file == "-"
    if not is_quiet:
        out.print(heading(plan))
    if capacity:
        if len(plan.rates) < 2 or plots is not None:
            fail(
                "--capacity searches between rates and draws nothing; expected --rates LOW:HIGH:STEP",
                Exit.USAGE,
            )
        found = find_capacities(plan, target)
        if json_file is not None:
            write_json(json_file, plan, capacities=found)
        if not is_quiet:
            out.print(capacity_table(found))
        return
    points = run_plan(plan, jobs=jobs, check=check, time_decisions=time_decisions)
    for line in warnings(points):
        err.print(line, markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, plan, points=points)
    if not is_quiet:
        out.print(result_table(points))
        for table in detail_tables(points):
            out.print()
            out.print(table)
    if plots is not None:
        from sage_simulator.plots import draw_plots

        for file in draw_plots(points, Path(plots), f"{plan.trace.name} on {plan.fleet.name}"):
            err.print(f"wrote {file}", markup=False)
