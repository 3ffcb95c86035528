"""How a response comes about: the model's events in, typed events or one body out. Pure; the clock is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from sage_core import Internal
from sage_gateway.dialects.pieces import CallArguments, CallStarted, Content, Parser, Piece, Reasoning
from sage_gateway.errors import HttpError
from sage_gateway.operations.extras import Extras, source_bodies
from sage_gateway.operations.generation import num_reasoning
from sage_gateway.operations.logprobs import TokenBody, chat_logprobs
from sage_gateway.responses.items import Item, ItemIds, Status
from sage_gateway.responses.open_items import OpenCall, OpenItem, OpenMessage, OpenReasoning
from sage_gateway.responses.resource import (
    IncompleteDetails,
    ResponseBody,
    ResponseError,
    ResponseStatus,
    usage_of,
)
from sage_gateway.responses.stream_events import Events
from sage_wire.messages import Annotated, Completed, Event, Started, Tokens, Usage

__all__ = ["ResponseAnswer"]

_DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class ResponseAnswer:
    """The answer to one `POST /v1/responses`. See `sage_gateway.operation.Answer`.

    An item is open at a time; another kind of piece closes it. Whitespace between items makes no message of its own.
    `unix_time` is asked for the moment at which the response completed.
    """

    def __init__(
        self, response: ResponseBody, parser: Parser, *, is_streamed: bool, unix_time: Callable[[], int]
    ) -> None:
        self.is_streamed = is_streamed
        self._response = response
        self._parser = parser
        self._unix_time = unix_time
        self._events = Events(is_streamed=is_streamed)
        self._ids = ItemIds(response.id, "o")
        self._has_begun = False
        self._output: list[Item] = []
        self._open: OpenItem | None = None
        self._blank = ""
        self._logprobs: list[TokenBody] = []
        self._completed: Completed | None = None
        self._reasoning_tokens = 0
        self._extras = Extras()

    @property
    def usage(self) -> Usage:
        """The tokens of the work, once it completed."""
        return Usage() if self._completed is None else self._completed.usage

    @property
    def finish_reasons(self) -> list[str]:
        """The reason of the one choice, once it completed."""
        return [] if self._completed is None else [self._completed.finish_reason]

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """Take events of the only work; return what they add to the stream."""
        assert index == 0
        parts = [self._beginning()]
        for event in events:
            match event:
                case Tokens():
                    self._take(event, parts)
                case Started():
                    pass
                case Annotated():
                    self._extras.add(event)
                case Completed():
                    self._completed = event
                    for piece in self._parser.finish():
                        self._piece(piece, parts)
                    self._close(self._last_status, parts)
                    if not self._output:
                        self._begin(OpenMessage(self._events, self._ids.next("msg"), 0), parts)
                        self._say(self._blank, parts)
                        self._close(self._last_status, parts)
                case _:
                    raise Internal(f"the worker sent {type(event).__name__} for a response")
        return b"".join(parts)

    def finished(self) -> ResponseBody:
        """Return the response as it ended. Only after its work completed."""
        assert self._completed is not None
        status: ResponseStatus = self._last_status
        if status == "completed":
            return self._shown(status, completed_at=self._unix_time())
        return self._shown(status, incomplete_details=IncompleteDetails("max_output_tokens"))

    def end(self) -> bytes:
        """Return the last event and `[DONE]`, or the whole body."""
        response = self.finished()
        if not self.is_streamed:
            return _encode(response)
        return self._events.response(response.status, response) + _DONE

    def stopped(self, status: ResponseStatus, error: HttpError | None = None) -> ResponseBody:
        """Return the response as it is now, ended before its time."""
        reason = None if error is None else _response_error(error)
        return self._shown(status, error=reason)

    def fail(self, response: ResponseBody, error: HttpError) -> bytes:
        """Return the end of a stream that failed or was cancelled: `error`, then `response.failed` with `response`."""
        began = self._beginning()
        return began + self._events.error(error) + self._events.response("failed", response)

    @property
    def is_stored(self) -> bool:
        """Whether the rest of the answer says that the response can be found later."""
        return self._response.store

    @is_stored.setter
    def is_stored(self, is_stored: bool) -> None:
        if is_stored != self._response.store:
            self._response = msgspec.structs.replace(self._response, store=is_stored)

    def _beginning(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        created = self._events.response("created", self._response)
        return created + self._events.response("in_progress", self._response)

    def _take(self, event: Tokens, parts: list[bytes]) -> None:
        if event.logprobs:
            self._logprobs += chat_logprobs(event.logprobs)
        pieces = self._parser.push(event.text)
        self._reasoning_tokens += num_reasoning(pieces, event)
        for piece in pieces:
            self._piece(piece, parts)

    def _piece(self, piece: Piece, parts: list[bytes]) -> None:
        match piece:
            case Content():
                if not isinstance(self._open, OpenMessage):
                    self._blank += piece.text
                    if self._blank.isspace():
                        return
                    self._begin(OpenMessage(self._events, self._ids.next("msg"), self._next_index), parts)
                    piece, self._blank = Content(self._blank), ""
                self._say(piece.text, parts)
            case Reasoning():
                if not isinstance(self._open, OpenReasoning):
                    is_summary = self._response.reasoning.summary is not None
                    self._begin(
                        OpenReasoning(
                            self._events, self._ids.next("rs"), self._next_index, is_summary=is_summary
                        ),
                        parts,
                    )
                self._say(piece.text, parts)
            case CallStarted():
                call = OpenCall(self._events, self._ids.next("fc"), self._next_index, piece.id, piece.name)
                self._begin(call, parts)
            case CallArguments():
                self._say(piece.text, parts)

    @property
    def _next_index(self) -> int:
        return len(self._output) + (self._open is not None)

    @property
    def _last_status(self) -> Status:
        is_cut = self._completed is not None and self._completed.finish_reason == "length"
        return "incomplete" if is_cut else "completed"

    def _begin(self, item: OpenItem, parts: list[bytes]) -> None:
        self._close("completed", parts)
        self._open = item
        parts.append(item.open())

    def _say(self, text: str, parts: list[bytes]) -> None:
        assert self._open is not None
        if text:
            parts.append(self._open.add(text, self._logprobs))
        self._logprobs = []

    def _close(self, status: Status, parts: list[bytes]) -> None:
        if self._open is not None:
            item, said = self._open.close(status)
            self._output.append(item)
            self._open = None
            parts.append(said)

    def _shown(
        self,
        status: ResponseStatus,
        *,
        completed_at: int | None = None,
        error: ResponseError | None = None,
        incomplete_details: IncompleteDetails | None = None,
    ) -> ResponseBody:
        cut = [] if self._open is None else [self._open.seen("incomplete")]
        sources = source_bodies(self._extras.sources)
        return msgspec.structs.replace(
            self._response,
            status=status,
            completed_at=completed_at,
            error=error,
            incomplete_details=incomplete_details,
            output=[*self._output, *cut],
            usage=None
            if self._completed is None
            else usage_of(self._completed.usage, self._reasoning_tokens),
            sources=sources or msgspec.UNSET,
            sage=self._extras.stage_times or msgspec.UNSET,
        )


def _response_error(error: HttpError) -> ResponseError:
    if error.status == 429:
        return ResponseError("rate_limit_exceeded", error.message)
    return ResponseError("invalid_prompt" if error.status < 500 else "server_error", error.message)
