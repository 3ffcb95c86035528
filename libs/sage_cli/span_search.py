"""Gather the spans of one trace from every actor, and receipts from every scheduler."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

from sage_bus import Bus, Received
from sage_cli.connection import open_bus
from sage_cli.runtime import Instance
from sage_core import SageError
from sage_telemetry import semconv
from sage_wire import decode, encode, subjects
from sage_wire.headers import ERROR
from sage_wire.messages import FindReceipt, FindSpans, FoundSpans, Message, Receipt, Span

__all__ = ["find_receipts", "find_spans"]

_ANSWER_TIME = 1.0
_LATE_SPANS_TIME = 0.3
"""Actors end their own spans of a request just after its last token has left."""

_UNKNOWN = "unknown"
"""The decision in the receipt of a scheduler that has none."""
_TRACE_ID = re.compile(r"[0-9a-f]{32}")

M = TypeVar("M", bound=Message)


async def find_spans(instance: Instance, name: str) -> list[Span]:
    """Return the recent spans of the trace that `name` is, or that the request `name` belongs to, each once.

    Empty where no actor remembers it.
    """
    async with open_bus(instance) as bus:
        await asyncio.sleep(_LATE_SPANS_TIME)
        trace_ids = {name}
        if _TRACE_ID.fullmatch(name) is None:
            named = await _ask_all(bus, instance, FindSpans(trace_id="", request_id=name))
            trace_ids = {span.trace_id for span in named}
        found: dict[str, Span] = {}
        for trace_id in sorted(trace_ids):
            spans = await _ask_all(bus, instance, FindSpans(trace_id=trace_id))
            found.update((span.span_id, span) for span in spans)
        return list(found.values())


async def _ask_all(bus: Bus, instance: Instance, message: FindSpans) -> list[Span]:
    max_replies = None if instance.is_cluster else len(instance.kinds)
    replies = await _gather(bus, subjects.every("find_spans"), message, FoundSpans, max_replies)
    return [span for reply in replies for span in reply.spans]


async def find_receipts(instance: Instance, name: str) -> list[Receipt]:
    """Return what each scheduler remembers of the request `name`, or of the requests that their client called so."""
    async with open_bus(instance) as bus:
        found = await _receipts_of(bus, instance, name)
        if found:
            return found
        await asyncio.sleep(_LATE_SPANS_TIME)
        named = await _ask_all(bus, instance, FindSpans(trace_id="", request_id=name))
        request_ids = {
            str(span.attributes[semconv.REQUEST_ID])
            for span in named
            if span.attributes.get(semconv.CLIENT_REQUEST_ID) == name
            and semconv.REQUEST_ID in span.attributes
        }
        for request_id in sorted(request_ids):
            found += await _receipts_of(bus, instance, request_id)
        return found


async def _receipts_of(bus: Bus, instance: Instance, request_id: str) -> list[Receipt]:
    """Return the receipts of those that have one; nobody knows how many stand by beside those expected."""
    num_schedulers = max(1, instance.kinds.count("scheduler"))
    message = FindReceipt(request_id=request_id)
    for max_replies in (num_schedulers, None):
        found = await _gather(bus, subjects.RECEIPTS_FIND, message, Receipt, max_replies)
        known = [receipt for receipt in found if receipt.decision != _UNKNOWN]
        if known or not found:
            return known
    return []


async def _gather(
    bus: Bus, subject: str, message: Message, kind: type[M], max_replies: int | None
) -> list[M]:
    replies = await bus.request_many(subject, encode(message), timeout=_ANSWER_TIME, max_replies=max_replies)
    return [found for reply in replies if (found := _decoded(reply, kind)) is not None]


def _decoded(reply: Received, kind: type[M]) -> M | None:
    """Return the answer, or None for an actor that answered with an error: the others still count."""
    if reply.headers.get(ERROR):
        return None
    try:
        return decode(kind, reply.payload)
    except SageError:
        return None
