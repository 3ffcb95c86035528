"""From a conversation to works, whichever API it came by: tools, structure, template arguments, several choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from sage_core import LimitExceeded
from sage_gateway.decoding import is_null
from sage_gateway.dialects import NewCallId, Parser, Piece, Reasoning, new_call_id, reasoning_parser
from sage_gateway.operations.refusal import wrong
from sage_gateway.operations.sampling import seeded
from sage_gateway.operations.tools import NO_TOOLS, ToolPlan
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Generate,
    RunPipeline,
    Sampling,
    ServedModel,
    Tokens,
    Work,
)

__all__ = [
    "PIPELINE_PREFIX",
    "ChatRequest",
    "answer_parser",
    "chat_works",
    "pipeline_work",
    "template_arguments",
]

PIPELINE_PREFIX: Final = "pipeline/"
GATHER_MS: Final = 250
"""How long a worker may gather text whose reader sees nothing before its end: fewer pieces cost every hop less."""

MAX_TEMPLATE_BYTES: Final = 16_384
MAX_TEMPLATE_ARGUMENTS: Final = 64
_WITHOUT_REASONING: Final = {"enable_thinking": False, "thinking": False}
"""What Qwen's and DeepSeek's templates call it; templates ignore variables that they do not know."""


class ChatRequest(msgspec.Struct, frozen=True):
    """What a conversation asks a model for. `template_arguments`: a JSON object as text, empty for none."""

    messages: Sequence[ChatMessage]
    sampling: Sampling
    tools: ToolPlan = NO_TOOLS
    template_arguments: str = ""
    continues_last: bool = False
    num_choices: int = 1
    is_streamed: bool = True


def chat_works(served: ServedModel, request: ChatRequest) -> list[Work]:
    """Return one work per choice. With a seed, choice `i` is drawn with seed + i."""
    prompt = ChatPrompt(
        messages=list(request.messages),
        tools=request.tools.tools,
        template_arguments=request.template_arguments,
        continues_last=request.continues_last,
    )
    return [
        Generate(
            model=served.name,
            prompt=prompt,
            sampling=seeded(request.sampling, index),
            structure=request.tools.structure,
            gather_ms=0 if request.is_streamed else GATHER_MS,
        )
        for index in range(request.num_choices)
    ]


def pipeline_work(
    served: ServedModel, messages: list[ChatMessage], sampling: Sampling, parameters: dict[str, str] | None
) -> RunPipeline:
    """Return the work of a pipeline that is asked for as a model."""
    name = served.name.removeprefix(PIPELINE_PREFIX)
    return RunPipeline(pipeline=name, messages=messages, sampling=sampling, parameters=parameters or {})


def answer_parser(
    served: ServedModel, tools: ToolPlan, *, continues_last: bool = False, make_id: NewCallId = new_call_id
) -> Parser | None:
    """Return a new parser for one answer; None where all of its text is content."""
    if not tools.format and not served.reasoning_format:
        return None
    parser = tools.parser(make_id)
    return reasoning_parser(served.reasoning_format, parser, is_open=not continues_last)


def num_reasoning(pieces: Sequence[Piece], event: Tokens) -> int:
    """Return how many of the tokens of `event` are reasoning, by the share of its text where it has both."""
    num_chars = sum([len(piece.text) for piece in pieces if type(piece) is Reasoning])
    if not num_chars:
        return 0
    if len(pieces) == 1:
        return event.num_tokens
    return min(event.num_tokens, round(event.num_tokens * num_chars / max(1, len(event.text))))


def template_arguments(
    effort: str | None = None,
    verbosity: str | None = None,
    given: Raw | None = None,
    param: str = "chat_template_kwargs",
) -> str:
    """Return the variables of the chat template as JSON text; what is `given`, an object, wins.

    Raises BadRequest for something else, LimitExceeded for too much of it.
    """
    own: dict[str, Any] = {}
    if effort is not None:
        own["reasoning_effort"] = effort
        if effort == "none":
            own |= _WITHOUT_REASONING
    if verbosity is not None:
        own["verbosity"] = verbosity
    if given is None or is_null(given):
        return msgspec.json.encode(own).decode() if own else ""
    return _template_text(bytes(given), own, param)


def _template_text(given: bytes, own: dict[str, Any], param: str) -> str:
    if len(given) > MAX_TEMPLATE_BYTES:
        raise LimitExceeded(
            f"'{param}': found {len(given)} bytes; at most {MAX_TEMPLATE_BYTES} are allowed", param=param
        )
    try:
        arguments = msgspec.json.decode(given, type=dict[str, Any])
        text = given.decode()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise wrong(param, "expected an object") from None
    if len(arguments) > MAX_TEMPLATE_ARGUMENTS:
        raise LimitExceeded(
            f"'{param}': found {len(arguments)} arguments; at most {MAX_TEMPLATE_ARGUMENTS} are allowed",
            param=param,
        )
    if not own:
        return text if arguments else ""
    return msgspec.json.encode(own | arguments).decode()
