"""`sage chat`, `sage index`, `sage ask`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from sage_cli.commands.options import ApiKey, AsJson, Collection, Name
from sage_cli.exits import Exit, fail
from sage_cli.terminal import err, out, print_json

__all__ = ["ask", "chat", "index"]


def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="What to say; without it a conversation opens.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model or pipeline, as /v1/models lists them.")] = "auto",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    name: Name = "default",
    api_key: ApiKey = None,
) -> None:
    """Talk to a model; the answer streams.

    Goes through the gateway's OpenAI endpoint. Ctrl-C cancels the current answer; `-` as the prompt reads it from
    standard input.

    Example:  sage chat "Which actors does SAGE have?" --model pipeline/rag-docs
    """
    from sage_cli.conversation import converse, say_once
    from sage_cli.runtime import find_gateway_site, gateway_of

    gateway_url = gateway_of(find_gateway_site(name))
    if prompt is not None:
        text = sys.stdin.read() if prompt == "-" else prompt
        asyncio.run(say_once(gateway_url, model, text, max_tokens=max_tokens, api_key=api_key))
    else:
        converse(gateway_url, model, max_tokens=max_tokens, api_key=api_key)


def index(
    places: Annotated[list[Path], typer.Argument(metavar="DIR|FILE…", help="Folders and files to index.")],
    collection: Collection = "docs",
    pipeline: Annotated[str, typer.Option(help="Pipeline that splits, embeds and stores.")] = "index-docs",
    max_bytes: Annotated[str, typer.Option(help="Larger files are left out.")] = "2MiB",
    force: Annotated[bool, typer.Option("--force", help="Index unchanged documents again.")] = False,
    name: Name = "default",
    as_json: AsJson = False,
) -> None:
    """Index folders and files of documents.

    Takes text, Markdown, reStructuredText and HTML, plain or .gz, as durable jobs. Run it again at any time:
    unchanged documents are left alone, changed ones replace their passages, deleted ones leave the collection, an
    interrupted run goes on where it was.

    Example:  sage index /usr/share/doc --collection debian
    """
    from sage_cli.indexing import run_index
    from sage_cli.runtime import find_site
    from sage_core.units import parse_bytes

    for place in places:
        if not place.exists():
            fail(f"{place} does not exist; expected a folder or a file", Exit.USAGE)
    try:
        limit = parse_bytes(max_bytes)
    except ValueError as error:
        fail(f"--max-bytes: {error}", Exit.USAGE)
    instance = find_site(name)
    summary = asyncio.run(
        run_index(
            instance,
            places,
            collection=collection,
            pipeline=pipeline,
            max_bytes=limit,
            is_forced=force,
            console=err,
        )
    )
    if as_json:
        print_json(summary)
    else:
        out.print(summary.text(), markup=False)
    problem = summary.problem()
    if problem is not None:
        fail(problem)


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    collection: Collection = "docs",
    model: Annotated[str, typer.Option(help="Pipeline that retrieves and answers.")] = "pipeline/rag-docs",
    trace: Annotated[bool, typer.Option("--trace", help="Show where the time went, stage by stage.")] = False,
    name: Name = "default",
    api_key: ApiKey = None,
) -> None:
    """Ask the indexed documents, with sources.

    Example:  sage ask "How does SAGE notice a dead worker?" --trace
    """
    from sage_cli.conversation import ask_documents
    from sage_cli.runtime import find_gateway_site

    site = find_gateway_site(name)
    if trace and not site.bus_url:
        fail("--trace asks the actors, on the bus; set SAGE_BUS__URL", Exit.USAGE)
    asyncio.run(ask_documents(site, model, question, collection=collection, is_traced=trace, api_key=api_key))
