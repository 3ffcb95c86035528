"""Gather the spans of one trace from every actor, and receipts from every scheduler."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from sage_bus import Bus, Received
from sage_cli.connection import open_bus
from sage_cli.runtime import Instance
from sage_core import SageError
from sage_wire import decode, encode, subjects
from sage_wire.headers import ERROR
from sage_wire.messages import FindReceipt, FindSpans, FoundSpans, Message, Receipt, Span

__all__ = ["find_receipts", "find_spans"]

_ANSWER_TIME = 1.0
_LATE_SPANS_TIME = 0.3
"""Actors end their own spans of a request just after its last token has left."""

M = TypeVar("M", bound=Message)


async def find_spans(instance: Instance, trace_id: str) -> list[Span]:
    """Return the recent spans of a trace, each once; empty where no actor remembers it."""
    async with open_bus(instance) as bus:
        await asyncio.sleep(_LATE_SPANS_TIME)
        found: dict[str, Span] = {}
        replies = await _gather(
            bus, subjects.every("find_spans"), FindSpans(trace_id=trace_id), FoundSpans, len(instance.kinds)
        )
        for reply in replies:
            found.update((span.span_id, span) for span in reply.spans)
        return list(found.values())


async def find_receipts(instance: Instance, request_id: str) -> list[Receipt]:
    """Return what each scheduler remembers of a request."""
    async with open_bus(instance) as bus:
        num_schedulers = max(1, instance.kinds.count("scheduler"))
        return await _gather(bus, subjects.RECEIPTS_FIND, FindReceipt(request_id=request_id), Receipt, num_schedulers)


async def _gather(bus: Bus, subject: str, message: Message, kind: type[M], max_replies: int) -> list[M]:
    replies = await bus.request_many(
        subject, encode(message), timeout=_ANSWER_TIME, max_replies=max_replies
    )
    return [found for reply in replies if (found := _decoded(reply, kind)) is not None]


def _decoded(reply: Received, kind: type[M]) -> M | None:
    """Return the answer, or None for an actor that answered with an error: the others still count."""
    if reply.headers.get(ERROR):
        return None
    try:
        return decode(kind, reply.payload)
    except SageError:
        return None
