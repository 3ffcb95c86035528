"""`POST /v1/chat/completions`: from a body to works and the answer that their events become."""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from sage_gateway.decoding import is_null
from sage_gateway.dialects import Parser
from sage_gateway.operation import Answer, Asked, Planned
from sage_gateway.operations.chat_body import CHAT_DECODER, ChatBody, requested_tools
from sage_gateway.operations.chat_stream import StreamedChat
from sage_gateway.operations.chat_terms import ChatTerms
from sage_gateway.operations.chat_whole import WholeChat
from sage_gateway.operations.generation import (
    ChatRequest,
    answer_parser,
    chat_works,
    pipeline_work,
    template_arguments,
)
from sage_gateway.operations.messages import chat_messages
from sage_gateway.operations.refusal import wrong
from sage_gateway.operations.sampling import read_structure, sampling_of, shown_tier
from sage_gateway.operations.serving import find_served, fingerprint
from sage_gateway.operations.structures import response_structure
from sage_gateway.operations.tools import NO_TOOLS, ToolPlan, plan_tools
from sage_telemetry import semconv
from sage_wire.messages import ChatMessage, Sampling, ServedModel, Work

__all__ = ["ChatOperation"]

_TASKS: Final = ("generate", "pipeline")

_NOT_FOR_PIPELINES: Final = (
    "n", "tools", "functions", "logprobs", "response_format", "structured_outputs", "guided_json", "guided_regex",
    "guided_choice", "guided_grammar", "echo", "reasoning_effort", "verbosity", "chat_template_kwargs",
    "continue_final_message", "return_token_ids", "return_tokens_as_token_ids", "include_stop_str_in_output",
)  # fmt: skip
"""What is asked of one model is not asked of several nodes."""


class ChatOperation:
    """Implements `operation.Operation`."""

    def plan(self, payload: bytes, asked: Asked) -> Planned:
        """See Operation."""
        decoded = CHAT_DECODER.decode(payload)
        body = decoded.body
        served = find_served(asked, body.model, _TASKS)
        messages = chat_messages(body.messages, served)
        sampling = sampling_of(body, _max_tokens(body), _num_logprobs(body))
        tools = NO_TOOLS
        works: list[Work]
        if served.task == "pipeline":
            _refuse_for_pipeline(body)
            works = [pipeline_work(served, messages, sampling, body.parameters)]
        else:
            tools = _tool_plan(body, served)
            works = _model_works(body, served, messages, sampling, tools)
        terms = _terms(body, asked, served, tools)
        parsers: list[Parser | None] = [
            answer_parser(served, tools, continues_last=bool(body.continue_final_message)) for _ in works
        ]
        answer: Answer = StreamedChat(terms, parsers) if body.stream else WholeChat(terms, parsers)
        return Planned(semconv.OPERATION_CHAT, served, works, answer, body.service_tier, decoded.num_ignored)


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is None:
        return new
    if new is not None and old != new:
        raise wrong("max_tokens", "max_tokens and max_completion_tokens are both given and differ; give one")
    if old == 0:
        raise wrong("max_tokens", "found 0; expected at least 1")
    return old


def _num_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise wrong("top_logprobs", "needs logprobs = true")
    return None


def _tool_plan(body: ChatBody, served: ServedModel) -> ToolPlan:
    formatted = None if body.response_format is None else response_structure(body.response_format)
    structure = read_structure(body, formatted)
    if (body.tools, body.functions, body.tool_choice, body.function_call) == (None, None, None, None):
        return NO_TOOLS if structure is None else ToolPlan(structure=structure)
    tools, choice = requested_tools(body)
    return plan_tools(
        tools,
        choice,
        served,
        structure=structure,
        # The deprecated form knows one call alone.
        is_parallel=body.parallel_tool_calls is not False and body.functions is None,
        param="tools" if body.functions is None else "functions",
    )


def _model_works(
    body: ChatBody,
    served: ServedModel,
    messages: list[ChatMessage],
    sampling: Sampling,
    tools: ToolPlan,
) -> list[Work]:
    if body.parameters:
        raise wrong("parameters", "only pipelines have parameters")
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise wrong("continue_final_message", "excludes add_generation_prompt")
    if body.add_generation_prompt is False and not continues:
        raise wrong("add_generation_prompt", "false is supported with continue_final_message alone")
    return chat_works(
        served,
        ChatRequest(
            messages,
            sampling,
            tools,
            template_arguments(body.reasoning_effort, body.verbosity, body.chat_template_kwargs),
            continues,
            body.n or 1,
            is_streamed=bool(body.stream),
        ),
    )


def _terms(body: ChatBody, asked: Asked, served: ServedModel, tools: ToolPlan) -> ChatTerms:
    options = body.stream_options
    if options is not None and not body.stream:
        raise wrong("stream_options", "is allowed only with stream = true")
    prefix = ""
    if body.echo and body.messages[-1].role == "assistant" and isinstance(body.messages[-1].content, str):
        prefix = body.messages[-1].content
    return ChatTerms(
        asked.request_id,
        asked.created,
        served.name,
        fingerprint(served),
        shown_tier(body.service_tier),
        has_functions=body.functions is not None,
        is_named=tools.is_named,
        has_logprobs=bool(body.logprobs),
        has_token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        includes_stop=bool(body.include_stop_str_in_output),
        includes_reasoning=body.include_reasoning is not False,
        includes_usage=options is not None and bool(options.include_usage),
        continuous_usage=options is not None
        and bool(options.include_usage)
        and bool(options.continuous_usage_stats),
        prefix=prefix,
    )


def _refuse_for_pipeline(body: ChatBody) -> None:
    for name in _NOT_FOR_PIPELINES:
        value = getattr(body, name)
        if not value or (isinstance(value, Raw) and is_null(value)):
            continue
        if (name == "n" and value == 1) or (name == "response_format" and value.type == "text"):
            continue
        raise wrong(name, "is not supported for pipelines; ask one of their models instead")
