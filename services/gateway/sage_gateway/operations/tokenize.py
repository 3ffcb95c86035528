"""`POST /tokenize` and `/detokenize`: a model's own tokenizer, in vLLM's form.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html#tokenizer-api
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta, Raw, field

from sage_core import Internal
from sage_gateway.catalog import AUTO
from sage_gateway.decoding import BodyDecoder, RawObject, Unsupported, absent
from sage_gateway.operation import Asked, Planned
from sage_gateway.operations.chat_body import ToolBody, defined_tools
from sage_gateway.operations.fields import ModelName, TokenId
from sage_gateway.operations.generation import template_arguments
from sage_gateway.operations.message_body import Messages
from sage_gateway.operations.messages import chat_messages
from sage_gateway.operations.refusal import missing, wrong
from sage_gateway.operations.serving import find_served
from sage_gateway.operations.tools import MAX_TOOLS
from sage_wire import decode
from sage_wire.messages import (
    ChatPrompt,
    Completed,
    Detokenize,
    Detokenized,
    Event,
    Message,
    Output,
    ServedModel,
    TextPrompt,
    Tokenize,
    Tokenized,
    Usage,
)

__all__ = [
    "MAX_TOKENS",
    "DetokenizeBody",
    "DetokenizeOperation",
    "DetokenizedBody",
    "TokenizeBody",
    "TokenizeOperation",
    "TokenizedBody",
]

MAX_TOKENS: Final = 1_048_576

_TASKS: Final = ("generate", "embed")
_encode = msgspec.json.Encoder().encode
M = TypeVar("M", bound=Message)


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt or messages. `add_special_tokens` is true for the one and false for the other where it is not given."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: RawObject = field(default_factory=absent)
    tools: Annotated[list[ToolBody], Meta(max_length=MAX_TOOLS)] | None = None


class DetokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids of the model's tokenizer."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS)]


TOKENIZE_DECODER: Final = BodyDecoder(
    TokenizeBody,
    unsupported={
        "chat_template": Unsupported("templates are not taken from requests"),
        "mm_processor_kwargs": Unsupported("is not supported"),
    },
)
DETOKENIZE_DECODER: Final = BodyDecoder(DetokenizeBody)


class TokenizedBody(msgspec.Struct, frozen=True):
    """`POST /tokenize` answers this. `max_model_len` is 0 where the model's context is not known."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizedBody(msgspec.Struct, frozen=True):
    """`POST /detokenize` answers this."""

    prompt: str


class TokenizeOperation:
    """Implements `operation.Operation`."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = TOKENIZE_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model or AUTO, _TASKS)
        with_strings = bool(body.return_token_strs)
        work = Tokenize(
            model=served.name,
            prompt=_prompt(body, served),
            adds_special_tokens=body.add_special_tokens,
            with_strings=with_strings,
        )
        answer = _TokenizeAnswer(served.max_context, with_strings=with_strings)
        return Planned("tokenize", served, [work], answer, num_ignored=decoded.num_ignored)


class DetokenizeOperation:
    """Implements `operation.Operation`."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = DETOKENIZE_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model or AUTO, _TASKS)
        work = Detokenize(model=served.name, token_ids=body.tokens)
        return Planned("detokenize", served, [work], _DetokenizeAnswer(), num_ignored=decoded.num_ignored)


class _OutputGatherer:
    """Takes the one `Output` of a work."""

    is_streamed = False

    def __init__(self) -> None:
        self._value: Raw | None = None
        self.usage = Usage()
        self.finish_reasons: list[str] = []

    def add(self, index: int, events: Sequence[Event]) -> bytes:
        """See Answer."""
        del index
        for event in events:
            if type(event) is Output:
                self._value = event.value
            elif type(event) is Completed:
                self.usage = event.usage
            else:
                raise Internal(f"the worker sent {type(event).__name__} for tokens")
        return b""

    def _output(self, kind: type[M]) -> M:
        if self._value is None:
            raise Internal("the worker returned no tokens")
        return decode(kind, self._value)


class _TokenizeAnswer(_OutputGatherer):
    def __init__(self, max_context: int, *, with_strings: bool) -> None:
        super().__init__()
        self._max_context, self._with_strings = max_context, with_strings

    def end(self) -> bytes:
        """See Answer."""
        found = self._output(Tokenized)
        strings = found.strings if self._with_strings else None
        return _encode(TokenizedBody(len(found.token_ids), self._max_context, found.token_ids, strings))


class _DetokenizeAnswer(_OutputGatherer):
    def end(self) -> bytes:
        """See Answer."""
        return _encode(DetokenizedBody(self._output(Detokenized).text))


def _prompt(body: TokenizeBody, served: ServedModel) -> ChatPrompt | TextPrompt:
    if body.messages is None:
        if body.prompt is None:
            raise missing("prompt")
        return TextPrompt(text=body.prompt)
    if body.prompt is not None:
        raise wrong("messages", "prompt is given already; give one of them")
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise wrong("continue_final_message", "excludes add_generation_prompt")
    if body.add_generation_prompt is False and not continues:
        raise wrong("add_generation_prompt", "false is supported with continue_final_message alone")
    return ChatPrompt(
        messages=chat_messages(body.messages, served),
        tools=defined_tools(body.tools),
        template_arguments=template_arguments(given=body.chat_template_kwargs),
        continues_last=continues,
    )
