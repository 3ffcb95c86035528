"""`chat.completion.chunk`: an answer as it is generated.

Per choice: the role in the first delta, text, reasoning and calls as they come, exactly one `finish_reason`; then, if
asked for, one chunk with the usage and no choices; then `[DONE]`. Choices may be interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sage_core import Internal
from sage_gateway.dialects import CallArguments, CallStarted, Content, Parser, Piece, Reasoning
from sage_gateway.operations.chat_terms import ChatTerms, finish_reason
from sage_gateway.operations.chunks import DONE, ChunkTemplate, encode
from sage_gateway.operations.extras import Extras, source_bodies
from sage_gateway.operations.generation import num_reasoning
from sage_gateway.operations.logprobs import ChatLogprobs, chat_logprobs
from sage_gateway.operations.usage import total_usage
from sage_wire.messages import Annotated, Completed, Event, TokenLogprobs, Tokens, Usage

__all__ = ["StreamedChat"]

_CLOSE: Final = b'},"logprobs":null,"finish_reason":null}]'


class StreamedChat:
    """Turns the events of a request into chunks; text is not kept. Implements `operation.Answer`."""

    is_streamed = True

    def __init__(self, terms: ChatTerms, parsers: Sequence[Parser | None]) -> None:
        self._terms = terms
        self._template = ChunkTemplate(
            b"chat.completion.chunk",
            terms.request_id,
            terms.created,
            terms.model,
            terms.fingerprint,
            terms.service_tier,
            includes_usage=terms.includes_usage,
        )
        # Usage up to now changes with every chunk; all else about them is known now.
        self._is_plain = not terms.has_details and not terms.continuous_usage
        self._close = _CLOSE + self._template.end
        self._choices = [
            _Choice(parser, self._template.head + b',"choices":[{"index":%d,"delta":{' % index)
            for index, parser in enumerate(parsers)
        ]

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        choice = self._choices[index]
        parts: list[bytes] = []
        if not choice.has_begun:
            choice.has_begun = True
            parts.append(self._chunk(choice, b'"role":"assistant","content":""'))
            if self._terms.prefix:
                parts.append(self._chunk(choice, b'"content":' + encode(self._terms.prefix)))
        for event in events:
            if type(event) is Tokens:
                if choice.parser is None and self._is_plain:
                    if event.text:
                        parts.append(choice.content + encode(event.text) + self._close)
                else:
                    self._add_tokens(choice, event, parts)
            elif type(event) is Completed:
                self._complete(choice, event, parts)
            elif type(event) is Annotated:
                self._annotate(choice, event, parts)
            else:
                raise Internal(f"the worker sent {type(event).__name__} for a chat request")
        return b"".join(parts)

    def end(self) -> bytes:
        """See Answer."""
        if not self._terms.includes_usage:
            return DONE
        return self._template.last(self._shown_usage(), self._num_reasoning) + DONE

    @property
    def usage(self) -> Usage:
        """See Answer."""
        return total_usage([choice.usage for choice in self._choices])

    @property
    def finish_reasons(self) -> list[str]:
        """See Answer."""
        return [choice.finish_reason for choice in self._choices if choice.finish_reason]

    @property
    def _num_reasoning(self) -> int:
        return sum(choice.num_reasoning for choice in self._choices)

    def _shown_usage(self) -> Usage:
        return total_usage([choice.usage for choice in self._choices], len(self._choices))

    def _add_tokens(self, choice: _Choice, event: Tokens, parts: list[bytes]) -> None:
        if self._terms.has_details:
            choice.logprobs += event.logprobs
            choice.token_ids += event.token_ids
        if self._terms.continuous_usage:
            choice.num_tokens += event.num_tokens
            num_cached = choice.usage.cached_tokens or event.num_cached
            choice.usage = Usage(completion_tokens=choice.num_tokens, cached_tokens=num_cached)
        if choice.parser is None:
            if event.text:
                parts.append(self._detailed(choice, b'"content":' + encode(event.text)))
            return
        pieces = choice.parser.push(event.text)
        choice.num_reasoning += num_reasoning(pieces, event)
        self._add_pieces(choice, pieces, parts)

    def _add_pieces(self, choice: _Choice, pieces: list[Piece], parts: list[bytes]) -> None:
        for piece in pieces:
            delta = self._delta(choice, piece)
            if delta:
                parts.append(self._detailed(choice, delta))

    def _delta(self, choice: _Choice, piece: Piece) -> bytes:
        """Return the fields of a delta, empty for what is not shown."""
        match piece:
            case Content(text=text):
                return b'"content":' + encode(text)
            case Reasoning(text=text):
                if not self._terms.includes_reasoning:
                    return b""
                shown = encode(text)
                return b'"reasoning_content":%b,"reasoning":%b' % (shown, shown)
            case CallStarted(index=index, id=call_id, name=name):
                choice.num_calls = index + 1
                if not self._terms.has_functions:
                    return (
                        b'"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]'
                        % (index, encode(call_id), encode(name))
                    )
                return b'"function_call":{"name":%b,"arguments":""}' % encode(name) if index == 0 else b""
            case CallArguments(index=index, text=text):
                if not self._terms.has_functions:
                    shown = encode(text)
                    return b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (index, shown)
                return b'"function_call":{"arguments":%b}' % encode(text) if index == 0 else b""

    def _complete(self, choice: _Choice, event: Completed, parts: list[bytes]) -> None:
        terms = self._terms
        if terms.includes_stop and isinstance(event.stop_reason, str):
            self._add_tokens(choice, Tokens(text=event.stop_reason, num_tokens=0), parts)
        if choice.parser is not None:
            self._add_pieces(choice, choice.parser.finish(), parts)
        choice.usage = event.usage
        choice.finish_reason = finish_reason(event.finish_reason, choice.num_calls, terms)
        times = choice.extras.stage_times
        parts.append(
            b'%b},"logprobs":%b,"finish_reason":%b,"stop_reason":%b%b}]%b%b'
            % (
                choice.open,
                self._logprobs(choice),
                encode(choice.finish_reason),
                encode(event.stop_reason),
                self._token_ids(choice),
                b"" if times is None else b',"sage":' + encode(times),
                self._end(),
            )
        )

    def _annotate(self, choice: _Choice, event: Annotated, parts: list[bytes]) -> None:
        choice.extras.add(event)
        if event.sources:
            sources = encode(source_bodies(event.sources))
            parts.append(
                b'%b},"logprobs":null,"finish_reason":null}],"sources":%b%b'
                % (choice.open, sources, self._end())
            )

    def _chunk(self, choice: _Choice, delta: bytes) -> bytes:
        return choice.open + delta + _CLOSE + self._end()

    def _detailed(self, choice: _Choice, delta: bytes) -> bytes:
        """Return a chunk with what is known about the tokens up to it."""
        if not choice.logprobs and not choice.token_ids:
            return self._chunk(choice, delta)
        return b'%b%b},"logprobs":%b,"finish_reason":null%b}]%b' % (
            choice.open,
            delta,
            self._logprobs(choice),
            self._token_ids(choice),
            self._end(),
        )

    def _logprobs(self, choice: _Choice) -> bytes:
        tokens, choice.logprobs = choice.logprobs, []
        if not tokens or not self._terms.has_logprobs:
            return b"null"
        return encode(ChatLogprobs(chat_logprobs(tokens, as_ids=self._terms.tokens_as_ids)))

    def _token_ids(self, choice: _Choice) -> bytes:
        token_ids, choice.token_ids = choice.token_ids, []
        return b',"token_ids":' + encode(token_ids) if self._terms.has_token_ids else b""

    def _end(self) -> bytes:
        if not self._terms.continuous_usage:
            return self._template.end
        return self._template.with_usage(self._shown_usage(), self._num_reasoning)


class _Choice:
    """What is to be known of one choice between its chunks."""

    __slots__ = (
        "content",
        "extras",
        "finish_reason",
        "has_begun",
        "logprobs",
        "num_calls",
        "num_reasoning",
        "num_tokens",
        "open",
        "parser",
        "token_ids",
        "usage",
    )

    def __init__(self, parser: Parser | None, opening: bytes) -> None:
        self.parser = parser
        self.open = opening
        self.content = opening + b'"content":'
        self.extras = Extras()
        self.finish_reason = ""
        self.has_begun = False
        self.logprobs: list[TokenLogprobs] = []
        self.num_calls = 0
        self.num_reasoning = 0
        self.num_tokens = 0
        self.token_ids: list[int] = []
        self.usage = Usage()
