"""`sage trace`, `sage explain`, `sage plan`, `sage replay`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from sage_cli.commands.options import AsJson, Name
from sage_cli.exits import Exit, fail
from sage_cli.terminal import out, print_json

__all__ = ["explain", "plan", "replay", "trace"]


def trace(
    trace_id: Annotated[
        str,
        typer.Argument(
            metavar="TRACE_ID|REQUEST_ID", help="From the `traceparent` or `x-request-id` header."
        ),
    ],
    name: Name = "default",
    as_json: AsJson = False,
) -> None:
    """Show where the time of a request went.

    Stage by stage, from every actor that a recent request met.

    Example:  sage trace 4bf92f3577b34da6a3ce929d0e0e4736
    """
    from sage_cli.runtime import find_site
    from sage_cli.span_search import find_spans
    from sage_cli.traces import lay_out, total_ms, trace_table

    spans = asyncio.run(find_spans(find_site(name), trace_id))
    if not spans:
        fail(f"no actor remembers spans of {trace_id!r}; only recent, sampled requests are kept")
    if as_json:
        print_json(
            {
                "trace_id": spans[0].trace_id,
                "total_ms": total_ms(spans),
                "stages": lay_out(spans),
                "spans": spans,
            }
        )
    else:
        out.print(f"trace {spans[0].trace_id}: {total_ms(spans):.1f} ms, {len(spans)} spans")
        out.print(trace_table(spans))


def explain(
    request_id: Annotated[
        str,
        typer.Argument(help="The request's id, ours or the client's own, as in the `x-request-id` header."),
    ],
    name: Name = "default",
    as_json: AsJson = False,
) -> None:
    """Show why a request was placed, held or refused.

    Queue time, candidates, scores, the reason, and what was predicted beside what came, from the scheduler's receipt.

    Example:  sage explain chatcmpl-0123456789abcdef
    """
    from sage_cli.receipts import receipt_text
    from sage_cli.runtime import find_site
    from sage_cli.span_search import find_receipts

    receipts = asyncio.run(find_receipts(find_site(name), request_id))
    if not receipts:
        fail(f"no scheduler remembers request {request_id!r}; only the latest decisions are kept")
    if as_json:
        print_json(receipts)
    else:
        for receipt in receipts:
            out.print(receipt_text(receipt))


def plan(
    file: Annotated[Path, typer.Argument(help="Pipeline file (YAML).")],
    as_json: AsJson = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
) -> None:
    """Compile a pipeline file, show what runs where.

    Exits with 2 and the line for a file with a mistake.

    Example:  sage plan my-pipeline.yaml --mermaid
    """
    from sage_cli.pipeline_plan import plan_of

    if file.is_dir():
        fail(f"{file} is a folder; expected a pipeline file (YAML)", Exit.USAGE)
    if not file.is_file():
        fail(f"{file} does not exist; expected a pipeline file (YAML)", Exit.USAGE)
    found = plan_of(file)
    if as_json:
        print(found.to_json())
    else:
        print(found.to_mermaid() if mermaid else found.to_text())


def replay(
    file: Annotated[
        Path,
        typer.Argument(help="Event log of a scheduler, from `events` in the state folder of its instance."),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:CLASS", help="Python policy to run, for a log that was recorded with one."
        ),
    ] = None,
) -> None:
    """Replay a scheduler's event log, compare every decision.

    Feeds the recorded events to a policy made anew. Exits with 1 and the first decision that comes out otherwise.
    A Python file that only the log names is not run.

    Example:  sage replay ~/.local/state/sage/default/events/scheduler.log
    """
    from sage_actor.announcer import installed_version
    from sage_cli.replaying import difference_text, replay_file

    if policy is not None:
        print(f"runs the policy {policy}", flush=True)
    found = replay_file(file, policy)
    header = found.log.header
    version = installed_version()
    if header.version != version:
        print(f"recorded by version {header.version or '?'}, replayed by {version}")
    if found.log.is_cut:
        print("the last record was cut short when its scheduler ended")
    if found.difference is not None:
        print(difference_text(found.difference))
        fail(f"{file}: policy {header.policy} decides otherwise from record {found.difference.index} on")
    print(f"{found.num_events} events of policy {header.policy}: every command is the same, byte for byte")
