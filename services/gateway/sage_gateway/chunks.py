"""Server-sent events of a stream, as OpenAI's clients parse them. Pure: events in, bytes out.

Per choice: the role in the first delta, text deltas, exactly one `finish_reason`; then, if asked for, one chunk
with the usage and no choices; then `[DONE]`. An error ends a stream without a finish reason and without `[DONE]`.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from sage_core import Internal
from sage_gateway.errors import HttpError, error_body
from sage_gateway.replies import Choice, source_bodies, total_usage, usage_body
from sage_wire.messages import Annotated, Completed, Event, Tokens, Usage

__all__ = ["DONE", "KEEP_ALIVE", "ChatChunks", "Chunks", "CompletionChunks", "error_event"]

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

_encode = msgspec.json.Encoder().encode
_END: Final = b"\n\n"


def error_event(error: HttpError) -> bytes:
    """Return the event that ends a stream in failure; clients raise it as an API error."""
    return b"data: " + error_body(error) + _END


class Chunks(Protocol):
    """Turns one request's events into stream bytes."""

    def add(self, index: int, events: list[Event]) -> bytes:
        """Return what `events` of choice `index` add to the stream."""
        ...

    def end(self) -> bytes:
        """Return the end of a stream whose every choice is complete."""
        ...


class _Templates:
    """The parts of a chunk that never change within a request, encoded once."""

    def __init__(
        self, object_: str, request_id: str, created: int, model: str, service_tier: str | None, tail: bytes
    ) -> None:
        tier = b"" if service_tier is None else b',"service_tier":' + _encode(service_tier)
        self.head = b'data: {"id":%b,"object":%b,"created":%d,"model":%b%b' % (
            _encode(request_id),
            _encode(object_),
            created,
            _encode(model),
            tier,
        )
        self.tail = tail + b"}" + _END

    def usage(self, usage: Usage) -> bytes:
        return b'%b,"choices":[],"usage":%b}%b' % (self.head, _encode(usage_body(usage)), _END)


class ChatChunks:
    """`chat.completion.chunk` events of a request with one choice.

    `sources` and `sage` are our extensions: fields of a chunk, beside `choices`.
    """

    def __init__(
        self, request_id: str, created: int, model: str, service_tier: str | None, *, include_usage: bool
    ) -> None:
        self.choice = Choice()
        self._include_usage = include_usage
        # With include_usage, every chunk but the one that carries it says `"usage": null`.
        tail = b',"usage":null' if include_usage else b""
        self._templates = _Templates("chat.completion.chunk", request_id, created, model, service_tier, tail)
        self._open = self._templates.head + b',"choices":[{"index":0,"delta":{'
        self._content = self._open + b'"content":'
        self._close = b'},"logprobs":null,"finish_reason":null}]' + self._templates.tail
        self._is_first = True

    def add(self, index: int, events: list[Event]) -> bytes:
        """Return what `events` add to the stream; text is not kept."""
        assert index == 0
        parts: list[bytes] = []
        if self._is_first:
            self._is_first = False
            parts.append(self._open + b'"role":"assistant","content":""' + self._close)
        for event in events:
            if isinstance(event, Tokens):
                if event.text:
                    parts.append(self._content + _encode(event.text) + self._close)
            elif isinstance(event, Annotated):
                self.choice.extras.add(event)
                if event.sources:
                    parts.append(self._with_extension(b"sources", _encode(source_bodies(event.sources))))
            elif isinstance(event, Completed):
                self.choice.usage = event.usage
                self.choice.finish_reason = event.finish_reason
                parts.append(self._finish(event.finish_reason))
            else:
                raise Internal(f"the worker sent {type(event).__name__} for a chat request")
        return b"".join(parts)

    def end(self) -> bytes:
        """Return the usage, if asked for, and `[DONE]`."""
        return (self._templates.usage(self.choice.usage) if self._include_usage else b"") + DONE

    def _with_extension(self, name: bytes, value: bytes) -> bytes:
        close = b'},"logprobs":null,"finish_reason":null}],"%b":%b' % (name, value)
        return self._open + close + self._templates.tail

    def _finish(self, reason: str) -> bytes:
        times = self.choice.extras.stage_times
        extension = b"" if times is None else b',"sage":' + _encode(times)
        close = b'},"logprobs":null,"finish_reason":%b}]%b' % (_encode(reason), extension)
        return self._open + close + self._templates.tail


class CompletionChunks:
    """`text_completion` events of a request with one choice per prompt."""

    def __init__(
        self, request_id: str, created: int, model: str, num_choices: int, *, include_usage: bool
    ) -> None:
        self._include_usage = include_usage
        tail = b',"usage":null' if include_usage else b""
        self._templates = _Templates("text_completion", request_id, created, model, None, tail)
        self._usages = [Usage() for _ in range(num_choices)]

    def add(self, index: int, events: list[Event]) -> bytes:
        """Return what `events` of choice `index` add to the stream."""
        parts: list[bytes] = []
        for event in events:
            if isinstance(event, Tokens):
                if event.text:
                    parts.append(self._chunk(index, event.text, None))
            elif isinstance(event, Completed):
                self._usages[index] = event.usage
                parts.append(self._chunk(index, "", event.finish_reason))
            elif not isinstance(event, Annotated):
                raise Internal(f"the worker sent {type(event).__name__} for a completion request")
        return b"".join(parts)

    def end(self) -> bytes:
        """Return the summed usage, if asked for, and `[DONE]`."""
        return (self._templates.usage(total_usage(self._usages)) if self._include_usage else b"") + DONE

    def _chunk(self, index: int, text: str, finish_reason: str | None) -> bytes:
        return b'%b,"choices":[{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b}]%b' % (
            self._templates.head,
            index,
            _encode(text),
            _encode(finish_reason),
            self._templates.tail,
        )
