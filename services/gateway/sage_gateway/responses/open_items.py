"""One item of the output while the model writes it: opened, grown by deltas, closed into what is shown and stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sage_gateway.operations.logprobs import TokenBody
from sage_gateway.responses.items import (
    FunctionCall,
    Item,
    Message,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    SummaryText,
)
from sage_gateway.responses.stream_events import DeltaHead, Events, Part

__all__ = ["OpenCall", "OpenItem", "OpenMessage", "OpenReasoning"]


class OpenItem(Protocol):
    """The item that is being written; there is one at a time."""

    def open(self) -> bytes:
        """Return the events that say that it began."""
        ...

    def add(self, text: str, logprobs: Sequence[TokenBody]) -> bytes:
        """Take more of it; return its delta."""
        ...

    def close(self, status: Status) -> tuple[Item, bytes]:
        """Return what it became, and the events that say so."""
        ...

    def seen(self, status: Status) -> Item:
        """Return what there is of it."""
        ...


class OpenMessage:
    """Text of the answer."""

    def __init__(self, events: Events, item_id: str, output_index: int) -> None:
        self._events = events
        self._id = item_id
        self._index = output_index
        self._texts: list[str] = []
        self._logprobs: list[TokenBody] = []
        self._head = DeltaHead("response.output_text.delta", item_id, output_index, "content_index")

    def open(self) -> bytes:
        """See `OpenItem.open`."""
        item = Message(self._id, "assistant", [], "in_progress")
        events = self._events
        return events.item("added", self._index, item) + events.part(
            "added", self._id, self._index, OutputText("")
        )

    def add(self, text: str, logprobs: Sequence[TokenBody]) -> bytes:
        """See `OpenItem.add`."""
        self._texts.append(text)
        self._logprobs += logprobs
        return self._events.delta(self._head, text, logprobs)

    def close(self, status: Status) -> tuple[Item, bytes]:
        """See `OpenItem.close`."""
        part = OutputText("".join(self._texts), logprobs=self._logprobs)
        item = Message(self._id, "assistant", [part], status)
        return item, _closing(self._events, self._id, self._index, part, item)

    def seen(self, status: Status) -> Item:
        """See `OpenItem.seen`."""
        return Message(
            self._id, "assistant", [OutputText("".join(self._texts), logprobs=self._logprobs)], status
        )


class OpenReasoning:
    """Reasoning: as it is, or in the place of its summary where the client asked for one."""

    def __init__(self, events: Events, item_id: str, output_index: int, *, is_summary: bool) -> None:
        self._events = events
        self._id = item_id
        self._index = output_index
        self._texts: list[str] = []
        self._is_summary = is_summary
        kind, place = (
            ("response.reasoning_summary_text.delta", "summary_index")
            if is_summary
            else ("response.reasoning_text.delta", "content_index")
        )
        self._head = DeltaHead(kind, item_id, output_index, place)

    def open(self) -> bytes:
        """See `OpenItem.open`."""
        item = ReasoningItem(self._id, status="in_progress")
        part = self._part()
        return self._events.item("added", self._index, item) + self._events.part(
            "added", self._id, self._index, part
        )

    def add(self, text: str, logprobs: Sequence[TokenBody]) -> bytes:  # noqa: ARG002 - of the answer alone
        """See `OpenItem.add`."""
        self._texts.append(text)
        return self._events.delta(self._head, text, None)

    def close(self, status: Status) -> tuple[Item, bytes]:
        """See `OpenItem.close`."""
        item = self.seen(status)
        return item, _closing(self._events, self._id, self._index, self._part(), item)

    def seen(self, status: Status) -> Item:
        """See `OpenItem.seen`."""
        part = self._part()
        if isinstance(part, SummaryText):
            return ReasoningItem(self._id, [part], [], status)
        return ReasoningItem(self._id, [], [part], status)

    def _part(self) -> SummaryText | ReasoningText:
        text = "".join(self._texts)
        return SummaryText(text) if self._is_summary else ReasoningText(text)


class OpenCall:
    """A call of a function."""

    def __init__(self, events: Events, item_id: str, output_index: int, call_id: str, name: str) -> None:
        self._events = events
        self._id = item_id
        self._index = output_index
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []
        self._head = DeltaHead("response.function_call_arguments.delta", item_id, output_index, None)

    def open(self) -> bytes:
        """See `OpenItem.open`."""
        return self._events.item("added", self._index, self.seen("in_progress"))

    def add(self, text: str, logprobs: Sequence[TokenBody]) -> bytes:  # noqa: ARG002 - of the answer alone
        """See `OpenItem.add`."""
        self._arguments.append(text)
        return self._events.delta(self._head, text, None)

    def close(self, status: Status) -> tuple[Item, bytes]:
        """See `OpenItem.close`."""
        item = self.seen(status)
        done = self._events.arguments_done(self._id, self._index, self._name, item.arguments)
        return item, done + self._events.item("done", self._index, item)

    def seen(self, status: Status) -> FunctionCall:
        """See `OpenItem.seen`."""
        return FunctionCall(self._id, self._call_id, self._name, "".join(self._arguments), status)


def _closing(events: Events, item_id: str, index: int, part: Part, item: Item) -> bytes:
    return (
        events.text_done(item_id, index, part)
        + events.part("done", item_id, index, part)
        + events.item("done", index, item)
    )
