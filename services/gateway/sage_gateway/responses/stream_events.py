"""The typed server-sent events of a streamed response. Pure: what happened in, bytes out.

Each event is `event: <type>` and a JSON object with the same `type` and a `sequence_number` that grows by one.
https://platform.openai.com/docs/api-reference/responses-streaming, https://www.openresponses.org/specification
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sage_gateway.errors import HttpError
from sage_gateway.operations.logprobs import TokenBody
from sage_gateway.responses.items import Item, OutputText, ReasoningText, SummaryText
from sage_gateway.responses.resource import ResponseBody

__all__ = ["DeltaHead", "Events", "Part"]

Part = OutputText | ReasoningText | SummaryText
"""The only part of an item that the model wrote."""

_encode = msgspec.json.Encoder().encode


class _ResponseFields(msgspec.Struct, frozen=True):
    response: ResponseBody


class _ItemFields(msgspec.Struct, frozen=True):
    output_index: int
    item: Item


class _PartFields(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class _SummaryPartFields(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    summary_index: int
    part: SummaryText


class _TextFields(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenBody]


class _ReasoningFields(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    content_index: int
    text: str


class _SummaryFields(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    summary_index: int
    text: str


class _ArgumentsFields(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    name: str
    arguments: str


class _Error(msgspec.Struct, frozen=True):
    type: str
    code: str
    message: str
    param: str | None


class _ErrorFields(msgspec.Struct, frozen=True):
    code: str
    message: str
    param: str | None
    error: _Error


class DeltaHead:
    """The part of an item's delta events that never changes, encoded once."""

    __slots__ = ("after", "before")

    def __init__(self, kind: str, item_id: str, output_index: int, place: str | None) -> None:
        name = kind.encode()
        self.before = b'event: %b\ndata: {"type":"%b","sequence_number":' % (name, name)
        index = b"" if place is None else b',"%b":0' % place.encode()
        self.after = b',"item_id":%b,"output_index":%d%b' % (_encode(item_id), output_index, index)


class Events:
    """Says what happens to the items of one response, in order; nothing at all where it is not streamed."""

    def __init__(self, *, is_streamed: bool) -> None:
        self.is_streamed = is_streamed
        self._sequence = 0

    def response(self, kind: str, response: ResponseBody) -> bytes:
        """Return the event `response.<kind>`, which shows the whole response."""
        return self._event(f"response.{kind}", _ResponseFields(response))

    def item(self, kind: str, output_index: int, item: Item) -> bytes:
        """Return `response.output_item.<kind>`."""
        return self._event(f"response.output_item.{kind}", _ItemFields(output_index, item))

    def part(self, kind: str, item_id: str, output_index: int, part: Part) -> bytes:
        """Return the event that opens (`added`) or closes (`done`) the only part of an item."""
        if isinstance(part, SummaryText):
            fields = _SummaryPartFields(item_id, output_index, 0, part)
            return self._event(f"response.reasoning_summary_part.{kind}", fields)
        return self._event(f"response.content_part.{kind}", _PartFields(item_id, output_index, 0, part))

    def delta(self, head: DeltaHead, text: str, logprobs: Sequence[TokenBody] | None) -> bytes:
        """Return a delta. Only those of an answer's text have `logprobs`, if an empty list; else None."""
        if not self.is_streamed:
            return b""
        sequence = self._sequence
        self._sequence += 1
        tail = b"" if logprobs is None else b',"logprobs":' + (_encode(logprobs) if logprobs else b"[]")
        return b'%b%d%b%b,"delta":%b}\n\n' % (head.before, sequence, head.after, tail, _encode(text))

    def text_done(self, item_id: str, output_index: int, part: Part) -> bytes:
        """Return the event with the whole text of a part."""
        match part:
            case OutputText():
                text = _TextFields(item_id, output_index, 0, part.text, part.logprobs)
                return self._event("response.output_text.done", text)
            case ReasoningText():
                reasoning = _ReasoningFields(item_id, output_index, 0, part.text)
                return self._event("response.reasoning_text.done", reasoning)
            case SummaryText():
                summary = _SummaryFields(item_id, output_index, 0, part.text)
                return self._event("response.reasoning_summary_text.done", summary)

    def arguments_done(self, item_id: str, output_index: int, name: str, arguments: str) -> bytes:
        """Return `response.function_call_arguments.done`."""
        fields = _ArgumentsFields(item_id, output_index, name, arguments)
        return self._event("response.function_call_arguments.done", fields)

    def error(self, error: HttpError) -> bytes:
        """Return the `error` event: flat as OpenAI's types have it, and nested as its servers send it."""
        message = error.message.encode("utf-8", "replace").decode()
        nested = _Error(error.type, error.code, message, error.param)
        return self._event("error", _ErrorFields(error.code, message, error.param, nested))

    def _event(self, kind: str, fields: msgspec.Struct) -> bytes:
        if not self.is_streamed:
            return b""
        sequence = self._sequence
        self._sequence += 1
        name = kind.encode()
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b\n\n' % (
            name,
            name,
            sequence,
            _encode(fields)[1:],
        )
