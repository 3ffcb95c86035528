"""`sage up`, `sage stop`, `sage status`, `sage logs`, `sage version`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from sage_cli.commands.options import AsJson, Name
from sage_cli.exits import CommandFailed, Exit, fail
from sage_cli.terminal import err, out, print_json

__all__ = ["logs", "status", "stop", "up", "version"]


def up(
    name: Name = "default",
    model: Annotated[
        str | None, typer.Option(help="Hub name or local folder of the language model.", show_default="auto")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="auto, vllm, transformers, emulated or extractive.", show_default="auto"),
    ] = None,
    embedding_model: Annotated[
        str | None, typer.Option(help="Embedding model.", show_default="all-MiniLM-L6-v2")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of the gateway; 0: a free one.", show_default="8080, or a free one"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Actor not to start; may be repeated.")
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Emulate a fleet as `sage simulate` reads it: a worker per instance."
        ),
    ] = None,
    schedulers: Annotated[
        int, typer.Option(min=1, max=9, help="Schedulers; all beyond the first stand by to take over.")
    ] = 1,
) -> None:
    """Start SAGE on this machine until Ctrl-C.

    Runs nats-server and six actors, restarts what dies, and leaves nothing running.

    Exits with 0 after a stop that was asked for, 2 for wrong settings, 1 where an actor cannot be started.

    Example:  sage up --model Qwen/Qwen3-0.6B --port 9000
    """
    from sage_cli.members import Choices
    from sage_cli.screens import LiveScreen, PlainScreen
    from sage_cli.up import run_instance

    choices = Choices(model, engine, embedding_model, port, config, tuple(without or ()), fleet)
    outcome = run_instance(
        name,
        choices,
        lambda: LiveScreen(out) if out.is_terminal else PlainScreen(out),
        num_schedulers=schedulers,
    )
    if outcome.status != Exit.OK:
        raise CommandFailed(outcome.reason, Exit(outcome.status))


def stop(
    name: Name = "default",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the drain.")] = 60.0,
) -> None:
    """Stop a running instance.

    It drains, then every process of it ends. Exits with 3 where none runs, 4 where it has not ended in time.

    Example:  sage stop --name experiment
    """
    from sage_cli.runtime import find_instance, is_running
    from sage_core import Paths

    instance = find_instance(name)
    os.kill(instance.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while is_running(Paths.for_instance(name)):
        if time.monotonic() > deadline:
            fail(
                f"instance {name!r} has not ended after {timeout:g} s; stop it at once with a second `sage stop`",
                Exit.NOT_READY,
            )
        time.sleep(0.1)
    err.print(f"instance {name!r} has stopped")


def status(
    name: Name = "default",
    as_json: AsJson = False,
    wait_ready: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Wait until every actor is ready, at most this long."),
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Kind of actor that must be ready; once more for a second one.",
            show_default="what `sage up` started; one of each in a cluster",
        ),
    ] = None,
) -> None:
    """Show hosts, actors, versions, models, health.

    Of the instance of this machine, or of the cluster whose bus SAGE_BUS__URL or `[bus] url` in SAGE_CONFIG names.
    Exits with 3 where nothing runs, 4 where it is not ready in time.

    Example:  sage status --wait-ready 60 --json
    """
    import msgspec

    from sage_cli.members import check_kinds
    from sage_cli.runtime import find_site
    from sage_cli.status import observe, report, status_table

    deadline = time.monotonic() + (wait_ready or 0.0)
    instance = find_site(name, wait=wait_ready or 0.0)
    if expect:
        instance = msgspec.structs.replace(instance, kinds=check_kinds("--expect", expect))
    found = asyncio.run(observe(instance, wait_ready=max(0.0, deadline - time.monotonic())))
    if as_json:
        print_json(report(instance, found))
    else:
        out.print(status_table(instance, found))
    missing = [*found.missing(instance.kinds), *(f"a leader of {pool}" for pool in found.unled())]
    if wait_ready is not None and missing:
        where = (
            f"; see `sage logs {missing[0]}`"
            if missing[0] in instance.kinds and not instance.is_cluster
            else ""
        )
        fail(f"not ready after {wait_ready:g} s: {', '.join(missing)}{where}", Exit.NOT_READY)
    if instance.is_cluster and not found.actors:
        fail(f"no actor is heard on the bus at {instance.bus_url}", Exit.NOT_RUNNING)


def logs(
    actor: Annotated[
        str | None, typer.Argument(help="One actor, e.g. gateway or nats-server.", show_default="all")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines arrive, until Ctrl-C.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Lines of each actor to begin with.")
    ] = 50,
    name: Name = "default",
) -> None:
    """Show the log of one actor, or of all.

    Example:  sage logs llm-worker -f
    """
    from sage_cli.log_files import follow_logs, last_lines, log_names
    from sage_core import Paths

    folder = Paths.for_instance(name).logs
    names = log_names(folder)
    if not names:
        fail(f"no logs in {folder}; instance {name!r} was never started", Exit.NOT_RUNNING)
    if actor is not None and actor not in names:
        fail(f"no log of {actor!r} in {folder}; expected one of {', '.join(names)}", Exit.USAGE)
    chosen = [actor] if actor is not None else names
    width = max(len(each) for each in chosen) if len(chosen) > 1 else 0
    for each in chosen:
        for line in last_lines(folder, each, lines):
            _print_log_line(each, line, width)
    if follow:
        for each, line in follow_logs(folder, chosen):
            _print_log_line(each, line, width)


def _print_log_line(actor: str, line: str, width: int) -> None:
    print(f"{actor:{width}}  {line}" if width else line, flush=True)


def version(as_json: AsJson = False) -> None:
    """Show the versions of SAGE and its engines.

    Example:  sage version --json
    """
    from sage_cli.versions import versions

    found = versions()
    if as_json:
        print_json(found)
    else:
        for package, number in found.items():
            out.print(f"{package:24} {number}", markup=False)
