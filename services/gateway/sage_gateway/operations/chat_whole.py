"""From events to a whole answer of chat."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from sage_core import Internal
from sage_gateway.dialects import CallArguments, CallStarted, Content, Parser, Piece, Reasoning
from sage_gateway.operations.chat_completion import (
    AnswerMessage,
    ChatChoice,
    ChatCompletion,
    FunctionCallBody,
    MadeToolCall,
)
from sage_gateway.operations.chat_terms import ChatTerms, finish_reason
from sage_gateway.operations.extras import Extras, source_bodies
from sage_gateway.operations.generation import num_reasoning
from sage_gateway.operations.logprobs import ChatLogprobs, chat_logprobs
from sage_gateway.operations.usage import total_usage, usage_body
from sage_wire.messages import Annotated, Completed, Event, TokenLogprobs, Tokens, Usage

__all__ = ["WholeChat"]

_encode = msgspec.json.Encoder().encode


class WholeChat:
    """Gathers the choices of a request. Implements `operation.Answer`."""

    is_streamed = False

    def __init__(self, terms: ChatTerms, parsers: Sequence[Parser | None]) -> None:
        self._terms = terms
        self._choices = [_Choice(parser, terms) for parser in parsers]

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        choice = self._choices[index]
        for event in events:
            if type(event) is Tokens:
                choice.add(event)
            elif type(event) is Completed:
                choice.complete(event)
            elif type(event) is Annotated:
                choice.extras.add(event)
            else:
                raise Internal(f"the worker sent {type(event).__name__} for a chat request")
        return b""

    def end(self) -> bytes:
        """See Answer."""
        terms, choices = self._terms, self._choices
        usage = total_usage([choice.usage for choice in choices], len(choices))
        body = ChatCompletion(
            terms.request_id,
            terms.created,
            terms.model,
            [choice.body(index) for index, choice in enumerate(choices)],
            usage_body(usage, sum([choice.num_reasoning for choice in choices])),
            terms.fingerprint,
            service_tier=terms.service_tier or UNSET,
            sage=choices[0].extras.stage_times or UNSET,
        )
        return _encode(body)

    @property
    def usage(self) -> Usage:
        """See Answer."""
        return total_usage([choice.usage for choice in self._choices])

    @property
    def finish_reasons(self) -> list[str]:
        """See Answer."""
        return [choice.finish_reason for choice in self._choices if choice.finish_reason]


class _Choice:
    """One choice while it arrives."""

    __slots__ = (
        "_calls",
        "_logprobs",
        "_parser",
        "_reasoning",
        "_stop_reason",
        "_terms",
        "_texts",
        "_token_ids",
        "extras",
        "finish_reason",
        "num_reasoning",
        "usage",
    )

    def __init__(self, parser: Parser | None, terms: ChatTerms) -> None:
        self._parser = parser
        self._terms = terms
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallStarted, list[str]]] = []
        self._logprobs: list[TokenLogprobs] = []
        self._token_ids: list[int] = []
        self._stop_reason: int | str | None = None
        self.extras = Extras()
        self.finish_reason = ""
        self.num_reasoning = 0
        self.usage = Usage()

    def add(self, event: Tokens) -> None:
        if self._parser is None:
            self._texts.append(event.text)
        else:
            pieces = self._parser.push(event.text)
            self.num_reasoning += num_reasoning(pieces, event)
            self._take(pieces)
        if self._terms.has_details:
            self._logprobs += event.logprobs
            self._token_ids += event.token_ids

    def complete(self, event: Completed) -> None:
        terms = self._terms
        if terms.includes_stop and isinstance(event.stop_reason, str):
            self.add(Tokens(text=event.stop_reason, num_tokens=0))
        if self._parser is not None:
            self._take(self._parser.finish())
        self.usage = event.usage
        self._stop_reason = event.stop_reason
        self.finish_reason = finish_reason(event.finish_reason, len(self._calls), terms)

    def body(self, index: int) -> ChatChoice:
        terms = self._terms
        text: str | None = terms.prefix + "".join(self._texts)
        reasoning: str | UnsetType = UNSET
        if self._reasoning and terms.includes_reasoning:
            reasoning = "".join(self._reasoning)
        calls: list[MadeToolCall] | UnsetType = UNSET
        function_call: FunctionCallBody | UnsetType = UNSET
        if self._calls:
            text = text or None
            made = [
                MadeToolCall(call.id, FunctionCallBody(call.name, "".join(parts)))
                for call, parts in self._calls
            ]
            if terms.has_functions:
                function_call = made[0].function
            else:
                calls = made
        return ChatChoice(
            index,
            AnswerMessage(
                text,
                reasoning_content=reasoning,
                reasoning=reasoning,
                tool_calls=calls,
                function_call=function_call,
                sources=source_bodies(self.extras.sources) or UNSET,
            ),
            self.finish_reason,
            ChatLogprobs(chat_logprobs(self._logprobs, as_ids=terms.tokens_as_ids))
            if terms.has_logprobs
            else None,
            self._stop_reason,
            self._token_ids if terms.has_token_ids else UNSET,
        )

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Content(text=text):
                    self._texts.append(text)
                case Reasoning(text=text):
                    self._reasoning.append(text)
                case CallStarted():
                    self._calls.append((piece, []))
                case CallArguments(text=text):
                    self._calls[-1][1].append(text)
