"""What a span says of a message, and of a piece of work: its GenAI attributes, its text where that may be recorded."""

from __future__ import annotations

import json
from typing import Final

from sage_telemetry import semconv
from sage_telemetry.tracing import AttributeValue, records_content
from sage_wire.messages import ChatPrompt, Embed, Generate, Rerank, Retrieve, RunPipeline, TextPrompt, Work

__all__ = ["MAX_CONTENT_CHARS", "describe_answer", "describe_message", "describe_work"]

MAX_CONTENT_CHARS: Final = 8192
"""What a text attribute keeps of its text: a batch of spans must stay below what collectors take."""


def describe_work(work: Work) -> dict[str, AttributeValue]:
    """Return the attributes of a span that stands for `work`; its text only with `[telemetry] record_content`."""
    attributes: dict[str, AttributeValue] = {semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER_SAGE}
    match work:
        case Generate():
            attributes |= _describe_generate(work)
        case Embed():
            attributes[semconv.GEN_AI_OPERATION_NAME] = semconv.OPERATION_EMBEDDINGS
            attributes[semconv.GEN_AI_REQUEST_MODEL] = work.model
            attributes[semconv.BATCH_ITEMS] = len(work.texts) or len(work.token_ids)
        case Rerank():
            attributes[semconv.GEN_AI_REQUEST_MODEL] = work.model
            attributes[semconv.BATCH_ITEMS] = len(work.documents)
        case Retrieve():
            attributes[semconv.GEN_AI_OPERATION_NAME] = semconv.OPERATION_RETRIEVAL
            attributes[semconv.GEN_AI_DATA_SOURCE_ID] = work.collection
        case RunPipeline():
            attributes[semconv.GEN_AI_OPERATION_NAME] = semconv.OPERATION_INVOKE_WORKFLOW
            attributes[semconv.GEN_AI_WORKFLOW_NAME] = work.pipeline
        case _:
            pass
    if records_content():
        attributes |= _content(work)
    return attributes


def describe_message(operation: str, operation_type: str, destination: str) -> dict[str, AttributeValue]:
    """Return the attributes of a span that sends or processes a message on the subject or stream `destination`."""
    return {
        semconv.MESSAGING_SYSTEM: semconv.MESSAGING_SYSTEM_NATS,
        semconv.MESSAGING_OPERATION_NAME: operation,
        semconv.MESSAGING_OPERATION_TYPE: operation_type,
        semconv.MESSAGING_DESTINATION_NAME: destination,
    }


def describe_answer(text: str, finish_reason: str) -> dict[str, AttributeValue]:
    """Return the attribute that holds generated `text`; nothing unless `[telemetry] record_content`."""
    if not records_content():
        return {}
    message = {"role": "assistant", "parts": [_part(text)], "finish_reason": finish_reason}
    return {semconv.GEN_AI_OUTPUT_MESSAGES: json.dumps([message], ensure_ascii=False)}


def _describe_generate(work: Generate) -> dict[str, AttributeValue]:
    is_chat = isinstance(work.prompt, ChatPrompt)
    sampling = work.sampling
    found: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION_NAME: semconv.OPERATION_CHAT
        if is_chat
        else semconv.OPERATION_TEXT_COMPLETION,
        semconv.GEN_AI_REQUEST_MODEL: work.model,
    }
    asked = {
        semconv.GEN_AI_REQUEST_MAX_TOKENS: sampling.max_tokens,
        semconv.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
        semconv.GEN_AI_REQUEST_TOP_P: sampling.top_p,
        semconv.GEN_AI_REQUEST_SEED: sampling.seed,
    }
    return found | {name: value for name, value in asked.items() if value is not None}


def _content(work: Work) -> dict[str, AttributeValue]:
    match work:
        case Generate(prompt=ChatPrompt(messages=messages)):
            turns = [{"role": turn.role, "parts": [_part(turn.content)]} for turn in messages]
            return {semconv.GEN_AI_INPUT_MESSAGES: json.dumps(turns, ensure_ascii=False)[:MAX_CONTENT_CHARS]}
        case Generate(prompt=TextPrompt(text=text)):
            turns = [{"role": "user", "parts": [_part(text)]}]
            return {semconv.GEN_AI_INPUT_MESSAGES: json.dumps(turns, ensure_ascii=False)}
        case Embed(texts=texts) if texts:
            return {semconv.INPUT_TEXTS: json.dumps(texts, ensure_ascii=False)[:MAX_CONTENT_CHARS]}
        case Retrieve(query=query):
            return {semconv.GEN_AI_RETRIEVAL_QUERY_TEXT: query[:MAX_CONTENT_CHARS]}
    return {}


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "content": text[:MAX_CONTENT_CHARS]}
