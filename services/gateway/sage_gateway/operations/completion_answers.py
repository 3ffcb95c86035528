"""`text_completion`: answers of `/v1/completions`, whole and as they are generated."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

from sage_core import Internal
from sage_gateway.operations.chunks import DONE, ChunkTemplate, encode
from sage_gateway.operations.logprobs import TextLogprobs, text_logprobs
from sage_gateway.operations.token_counts import UsageBody
from sage_gateway.operations.usage import total_usage, usage_body
from sage_wire.messages import Completed, Event, TokenLogprobs, Tokens, Usage

__all__ = ["CompletionTerms", "StreamedCompletion", "TextCompletion", "WholeCompletion"]


class CompletionTerms(msgspec.Struct, frozen=True):
    """How one request's answer is to be shown; choices of one prompt follow each other."""

    request_id: str
    created: int
    model: str
    fingerprint: str
    service_tier: str | None = None
    choices_per_prompt: int = 1
    has_logprobs: bool = False
    has_token_ids: bool = False
    tokens_as_ids: bool = False
    includes_stop: bool = False
    includes_usage: bool = False
    continuous_usage: bool = False


class TextChoice(msgspec.Struct, frozen=True):
    """One of the choices. `stop_reason` (of vLLM): the stop text or token that ended it."""

    index: int
    text: str
    finish_reason: str
    logprobs: TextLogprobs | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: None = None


class TextCompletion(msgspec.Struct, frozen=True):
    """`POST /v1/completions` answers this."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageBody
    system_fingerprint: str
    object: str = "text_completion"
    service_tier: str | UnsetType = UNSET


class _Choice:
    """One choice while it arrives. `num_chars`: of its text before the tokens whose probabilities are still here."""

    __slots__ = (
        "finish_reason",
        "logprobs",
        "num_chars",
        "num_tokens",
        "stop_reason",
        "texts",
        "token_ids",
        "usage",
    )

    def __init__(self) -> None:
        self.finish_reason = ""
        self.logprobs: list[TokenLogprobs] = []
        self.num_chars = 0
        self.num_tokens = 0
        self.stop_reason: int | str | None = None
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.usage = Usage()

    def complete(self, event: Completed) -> None:
        self.finish_reason = event.finish_reason
        self.stop_reason = event.stop_reason
        self.usage = event.usage


class _Choices:
    """What both kinds of answers know of their choices."""

    def __init__(self, terms: CompletionTerms, num_choices: int) -> None:
        self._terms = terms
        self._choices = [_Choice() for _ in range(num_choices)]

    @property
    def usage(self) -> Usage:
        """See Answer."""
        return total_usage([choice.usage for choice in self._choices])

    @property
    def finish_reasons(self) -> list[str]:
        """See Answer."""
        return [choice.finish_reason for choice in self._choices if choice.finish_reason]

    def _shown_usage(self) -> Usage:
        return total_usage([choice.usage for choice in self._choices], self._terms.choices_per_prompt)

    def _stop_text(self, event: Completed) -> str:
        return event.stop_reason if self._terms.includes_stop and isinstance(event.stop_reason, str) else ""

    def _take_logprobs(self, choice: _Choice) -> TextLogprobs | None:
        tokens, choice.logprobs = choice.logprobs, []
        if not self._terms.has_logprobs:
            return None
        shown = text_logprobs(tokens, choice.num_chars, as_ids=self._terms.tokens_as_ids)
        choice.num_chars += sum([len(token.chosen.text) for token in tokens])
        return shown


class WholeCompletion(_Choices):
    """Gathers the choices of a request. Implements `operation.Answer`."""

    is_streamed = False

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        choice = self._choices[index]
        for event in events:
            if type(event) is Tokens:
                choice.texts.append(event.text)
                choice.logprobs += event.logprobs
                choice.token_ids += event.token_ids
            elif type(event) is Completed:
                choice.texts.append(self._stop_text(event))
                choice.complete(event)
            else:
                raise Internal(f"the worker sent {type(event).__name__} for a completion request")
        return b""

    def end(self) -> bytes:
        """See Answer."""
        terms = self._terms
        choices = [
            TextChoice(
                index,
                "".join(choice.texts),
                choice.finish_reason,
                self._take_logprobs(choice),
                choice.stop_reason,
                choice.token_ids if terms.has_token_ids else UNSET,
            )
            for index, choice in enumerate(self._choices)
        ]
        return encode(
            TextCompletion(
                terms.request_id,
                terms.created,
                terms.model,
                choices,
                usage_body(self._shown_usage()),
                terms.fingerprint,
                service_tier=terms.service_tier or UNSET,
            )
        )


class StreamedCompletion(_Choices):
    """Turns the events of a request into chunks; text is not kept. Implements `operation.Answer`."""

    is_streamed = True

    def __init__(self, terms: CompletionTerms, num_choices: int) -> None:
        super().__init__(terms, num_choices)
        self._template = ChunkTemplate(
            b"text_completion",
            terms.request_id,
            terms.created,
            terms.model,
            terms.fingerprint,
            terms.service_tier,
            includes_usage=terms.includes_usage,
        )
        self._is_plain = not (terms.has_logprobs or terms.has_token_ids or terms.continuous_usage)
        self._close = b',"logprobs":null,"finish_reason":null}]' + self._template.end

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        choice = self._choices[index]
        opening = b'%b,"choices":[{"index":%d,"text":' % (self._template.head, index)
        parts: list[bytes] = []
        for event in events:
            if type(event) is Tokens:
                if self._is_plain:
                    if event.text:
                        parts.append(opening + encode(event.text) + self._close)
                else:
                    self._add_tokens(choice, opening, event, parts)
            elif type(event) is Completed:
                choice.complete(event)
                ending = b'%b,"stop_reason":%b' % (encode(event.finish_reason), encode(event.stop_reason))
                parts.append(self._detailed(choice, opening, self._stop_text(event), ending))
            else:
                raise Internal(f"the worker sent {type(event).__name__} for a completion request")
        return b"".join(parts)

    def end(self) -> bytes:
        """See Answer."""
        return (self._template.last(self._shown_usage()) if self._terms.includes_usage else b"") + DONE

    def _add_tokens(self, choice: _Choice, opening: bytes, event: Tokens, parts: list[bytes]) -> None:
        choice.logprobs += event.logprobs
        choice.token_ids += event.token_ids
        if self._terms.continuous_usage and not event.is_prompt:
            choice.num_tokens += event.num_tokens
            num_cached = choice.usage.cached_tokens or event.num_cached
            choice.usage = Usage(completion_tokens=choice.num_tokens, cached_tokens=num_cached)
        if event.text:
            parts.append(self._detailed(choice, opening, event.text, b"null"))

    def _detailed(self, choice: _Choice, opening: bytes, text: str, finish_reason: bytes) -> bytes:
        """Return a chunk with what is known about the tokens up to it."""
        logprobs = encode(self._take_logprobs(choice)) if choice.logprobs else b"null"
        token_ids, choice.token_ids = choice.token_ids, []
        ids = b',"token_ids":' + encode(token_ids) if self._terms.has_token_ids else b""
        end = self._template.end
        if self._terms.continuous_usage:
            end = self._template.with_usage(self._shown_usage())
        return b'%b%b,"logprobs":%b,"finish_reason":%b%b}]%b' % (
            opening,
            encode(text),
            logprobs,
            finish_reason,
            ids,
            end,
        )
