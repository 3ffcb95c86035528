"""From a body and the conversation before it to work and an answer. Pure: what is stored has been read already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from sage_core import SageError
from sage_gateway.dialects import PlainParser
from sage_gateway.operation import Asked, Planned
from sage_gateway.operations.generation import (
    ChatRequest,
    answer_parser,
    chat_works,
    pipeline_work,
    template_arguments,
)
from sage_gateway.operations.images import MAX_IMAGES
from sage_gateway.operations.refusal import missing, too_many, wrong
from sage_gateway.operations.serving import find_served
from sage_gateway.operations.structures import SchemaFormat, schema_structure
from sage_gateway.operations.tools import ToolChoice, ToolPlan, ToolReader, plan_tools
from sage_gateway.responses.answer import ResponseAnswer
from sage_gateway.responses.bodies import CreateBody, FormatBody, ToolBody, ToolChoiceBody
from sage_gateway.responses.conversation import chat_messages
from sage_gateway.responses.items import Item
from sage_gateway.responses.resource import ResponseBody
from sage_telemetry import semconv
from sage_wire.messages import (
    ChatMessage,
    JsonObject,
    Sampling,
    ServedModel,
    Structure,
    ToolDefinition,
    Work,
)

__all__ = ["PlannedResponse", "in_our_words", "plan_response"]

_SMALLEST_TOP_P: Final = 1e-6
_LOGPROBS: Final = "message.output_text.logprobs"

_PARAMS: Final = {
    "response_format": "text.format",
    "structured_outputs": "text.format",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "chat_template_kwargs": "reasoning",
}
"""What engines and the code shared with chat call a field, and what it is called here."""


class PlannedResponse(msgspec.Struct, frozen=True):
    """What to do for a body."""

    planned: Planned
    answer: ResponseAnswer


def in_our_words(error: SageError) -> SageError:
    """Return `error` with the name that its field has in this API."""
    if error.param is not None and error.param.partition(".")[0] in _PARAMS:
        head, _, tail = error.param.partition(".")
        error.param = f"{_PARAMS[head]}.{tail}" if tail else _PARAMS[head]
    return error


def plan_response(
    body: CreateBody,
    items: Sequence[Item],
    asked: Asked,
    *,
    response_id: str,
    is_stored: bool,
    unix_time: Callable[[], int],
) -> PlannedResponse:
    """Return the plan for `body`, whose conversation is `items`: what is stored of it, then its own input.

    Raises BadRequest naming what is wrong or not supported, NotFound for a model that is not served.
    """
    served = find_served(asked, body.model, ("generate", "pipeline"))
    _check(body)
    messages = chat_messages(body.instructions, items)
    if not messages:
        raise wrong("input", "says nothing; expected text or at least one item")
    _check_images(messages, served)
    tools = plan_tools(
        _definitions(body.tools or ()),
        _choice(body.tool_choice),
        served,
        structure=_structure(None if body.text is None else body.text.format),
        is_parallel=body.parallel_tool_calls is not False,
    )
    response = ResponseBody.of(
        body, response_id=response_id, created=asked.created, model=served.name, is_stored=is_stored
    )
    parser = answer_parser(served, tools) or PlainParser()
    answer = ResponseAnswer(response, parser, is_streamed=bool(body.stream), unix_time=unix_time)
    planned = Planned(
        name=semconv.OPERATION_CHAT,
        served=served,
        works=_works(body, messages, tools, served),
        answer=answer,
        service_tier=body.service_tier,
    )
    return PlannedResponse(planned, answer)


def _check(body: CreateBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", "is allowed only with stream = true")


def _check_images(messages: Sequence[ChatMessage], served: ServedModel) -> None:
    num_images = sum(len(message.images) for message in messages)
    if num_images and not served.takes_images:
        raise wrong("input", f"{served.name} understands text alone; it takes no images")
    if num_images > MAX_IMAGES:
        raise too_many("input", num_images, MAX_IMAGES, "images")


def _works(body: CreateBody, messages: list[ChatMessage], tools: ToolPlan, served: ServedModel) -> list[Work]:
    sampling = _sampling(body)
    if served.task == "pipeline":
        if tools.structure is not None:
            raise wrong("text.format", "pipelines write plain text")
        if sampling.logprobs is not None:
            raise wrong("top_logprobs", "pipelines have no log probabilities")
        return [pipeline_work(served, messages, sampling, body.parameters)]
    if body.parameters:
        raise wrong("parameters", "only pipelines have parameters")
    effort = None if body.reasoning is None else body.reasoning.effort
    verbosity = None if body.text is None else body.text.verbosity
    return chat_works(
        served,
        ChatRequest(
            messages,
            sampling,
            tools,
            template_arguments(effort, verbosity),
            is_streamed=bool(body.stream),
        ),
    )


def _sampling(body: CreateBody) -> Sampling:
    top_p = body.top_p
    wants_logprobs = bool(body.top_logprobs) or _LOGPROBS in (body.include or ())
    return Sampling(
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        # OpenAI's range includes 0, which leaves only the likeliest token; engines ask for more than 0.
        top_p=None if top_p is None else max(top_p, _SMALLEST_TOP_P),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
    )


def _structure(asked: FormatBody | None) -> Structure | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return JsonObject()
    if asked.name is None:
        raise missing("text.format.name")
    return schema_structure(SchemaFormat(asked.name, asked.schema), "text.format")


def _definitions(tools: Sequence[ToolBody]) -> list[ToolDefinition]:
    reader = ToolReader()
    for index, tool in enumerate(tools):
        param = f"tools[{index}]"
        if tool.type != "function":
            raise wrong(
                f"{param}.type", f"found '{tool.type[:60]}'; only functions are supported: no tool runs here"
            )
        if tool.name is None:
            raise missing(f"{param}.name")
        reader.add(tool.name, tool.description, tool.parameters, param)
    return reader.tools


def _choice(choice: str | ToolChoiceBody | None) -> ToolChoice:
    match choice:
        case None | "auto":
            return ToolChoice("auto")
        case "none":
            return ToolChoice("none")
        case "required":
            return ToolChoice("required")
        case ToolChoiceBody(type="function"):
            if choice.name is None:
                raise missing("tool_choice.name")
            return ToolChoice("named", (choice.name,))
        case ToolChoiceBody(type="allowed_tools"):
            return _allowed(choice)
        case ToolChoiceBody():
            raise wrong(
                "tool_choice.type", f"found '{choice.type[:60]}'; expected one of allowed_tools, function"
            )
    raise AssertionError(f"the decoder let {choice!r} through")


def _allowed(choice: ToolChoiceBody) -> ToolChoice:
    if not choice.tools:
        raise missing("tool_choice.tools")
    names = []
    for index, tool in enumerate(choice.tools):
        param = f"tool_choice.tools[{index}]"
        if tool.type != "function":
            raise wrong(f"{param}.type", f"found '{tool.type[:60]}'; only functions are supported")
        if tool.name is None:
            raise missing(f"{param}.name")
        names.append(tool.name)
    return ToolChoice(choice.mode or "auto", tuple(names))
