"""Answers on a terminal: streamed text, then sources, then where the time went."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass

from sage_cli.exits import CommandFailed
from sage_cli.openai_stream import AnswerEnd, AnswerText, ChatEndpoint, SourceList, SourcePart
from sage_cli.runtime import Instance, gateway_of
from sage_cli.terminal import err, out

__all__ = ["Answer", "ask_documents", "converse", "say_once", "show_sources", "stream_answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer and how fast it came, in seconds from the request."""

    text: str
    sources: list[SourcePart]
    end: AnswerEnd
    first_text_after: float
    total: float


async def stream_answer(
    endpoint: ChatEndpoint,
    model: str,
    messages: list[dict[str, str]],
    *,
    max_tokens: int | None = None,
    parameters: dict[str, str] | None = None,
) -> Answer:
    """Write the answer to stdout as it arrives; return it. Cancelling cancels the request."""
    started = time.monotonic()
    first: float | None = None
    pieces: list[str] = []
    sources: list[SourcePart] = []
    end: AnswerEnd | None = None
    try:
        async for part in endpoint.stream(model, messages, max_tokens=max_tokens, parameters=parameters):
            match part:
                case AnswerText(text):
                    first = first if first is not None else time.monotonic() - started
                    pieces.append(text)
                    sys.stdout.write(text)
                    sys.stdout.flush()
                case SourceList(found):
                    sources = found
                case AnswerEnd():
                    end = part
    finally:
        if pieces and not pieces[-1].endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
    assert end is not None
    total = time.monotonic() - started
    return Answer("".join(pieces), sources, end, first if first is not None else total, total)


def show_sources(sources: list[SourcePart]) -> None:
    """Print the passages an answer rests on, best first, numbered as the answer cites them."""
    if sources:
        out.print("\nSources", style="bold")
    for number, each in enumerate(sources, 1):
        title = f"  {each.title}" if each.title and each.title != each.source else ""
        part = f"  passage {each.position + 1}" if each.position else ""
        out.print(f"  [{number}] {each.source}{title}{part}  (score {each.score:.3f})", markup=False)


async def say_once(
    gateway_url: str, model: str, text: str, *, max_tokens: int | None, api_key: str | None
) -> None:
    """Send one message, stream the answer."""
    async with ChatEndpoint(gateway_url, api_key) as endpoint:
        answer = await stream_answer(
            endpoint, model, [{"role": "user", "content": text}], max_tokens=max_tokens
        )
    show_sources(answer.sources)


def converse(gateway_url: str, model: str, *, max_tokens: int | None, api_key: str | None) -> None:
    """Read and answer until end of input. Ctrl-C cancels an answer; at the prompt it ends the conversation."""
    messages: list[dict[str, str]] = []
    err.print(f"{model} at {gateway_url}; Ctrl-C cancels an answer, Ctrl-D ends", style="dim")

    async def answer() -> str:
        async with ChatEndpoint(gateway_url, api_key) as endpoint:
            return (await stream_answer(endpoint, model, messages, max_tokens=max_tokens)).text

    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            err.print()
            return
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            messages.append({"role": "assistant", "content": asyncio.run(answer())})
        except KeyboardInterrupt:
            messages.pop()
            err.print("\n(cancelled)", style="yellow")
        except CommandFailed as error:
            messages.pop()
            err.print(error.message, style="red", markup=False)


async def ask_documents(
    instance: Instance, model: str, question: str, *, collection: str, is_traced: bool, api_key: str | None
) -> Answer:
    """Ask a pipeline, show answer, sources and, where asked for, the stages of its trace."""
    async with ChatEndpoint(gateway_of(instance), api_key) as endpoint:
        answer = await stream_answer(
            endpoint,
            model,
            [{"role": "user", "content": question}],
            parameters={"collection": collection},
        )
    show_sources(answer.sources)
    if is_traced:
        await show_trace(instance, answer)
    return answer


async def show_trace(instance: Instance, answer: Answer) -> None:
    """Print where the time of `answer` went."""
    from sage_cli.span_search import find_spans
    from sage_cli.traces import trace_table

    if answer.end.trace_id is None:
        err.print("the gateway named no trace for this answer", style="yellow")
        return
    spans = await find_spans(instance, answer.end.trace_id)
    out.print(
        f"\nWhere the time went  {answer.total * 1000:.0f} ms in all, first text after "
        f"{answer.first_text_after * 1000:.0f} ms, trace {answer.end.trace_id}",
        style="bold",
    )
    out.print(trace_table(spans))
