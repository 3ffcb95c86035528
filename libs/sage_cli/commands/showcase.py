"""`sage demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_cli.commands.options import ApiKey, Name
from sage_cli.exits import CommandFailed, Exit, fail
from sage_cli.terminal import out

__all__ = ["demo"]


def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="Documents to index.", show_default="the documents shipped with SAGE"
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="What to ask.", show_default="a question about SAGE, or about DIR's documents"),
    ] = None,
    is_exiting: Annotated[
        bool, typer.Option("--exit", help="Stop after the answer instead of serving on; for scripts.")
    ] = False,
    name: Name = "default",
    model: Annotated[str | None, typer.Option(help="Language model.", show_default="auto")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine.", show_default="auto")] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of the gateway; 0: a free one.", show_default="8080, or a free one"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML).")] = None,
    api_key: ApiKey = None,
) -> None:
    """Start, index, ask, show where the time went.

    DIR's documents take the place of the shipped ones. Asks through the OpenAI endpoint, streams the answer with its
    sources, and keeps serving until Ctrl-C.

    Example:  sage demo ~/notes --question "What did we decide about backups?"
    """
    from sage_cli.demo import DEFAULT_QUESTION, Demo, shipped_documents
    from sage_cli.members import Choices
    from sage_cli.screens import PlainScreen
    from sage_cli.up import run_instance

    if folder is not None and not folder.is_dir():
        fail(f"{folder} is no folder; expected a folder of documents", Exit.USAGE)
    screen = PlainScreen(out)
    steps = Demo(
        screen=screen,
        folder=(folder or shipped_documents()).resolve(),
        collection="docs",
        question=question or (DEFAULT_QUESTION if folder is None else "What are these documents about?"),
        is_exiting=is_exiting,
        api_key=api_key,
    )
    choices = Choices(model=model, engine=engine, port=port, config=config)
    outcome = run_instance(name, choices, lambda: screen, when_ready=steps.run)
    if outcome.status != Exit.OK:
        raise CommandFailed(outcome.reason, Exit(outcome.status))
