"""Plans bodies and answers them with events, without the gateway around operations; OpenAI's own types check all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from sage_gateway.catalog import Catalog
from sage_gateway.operation import Asked, Operation, Planned
from sage_gateway.operations import ChatOperation, CompletionOperation
from sage_wire.messages import Completed, Event, Generate, ServedModel, Tokens, Usage

MODELS = (
    ServedModel(name="plain", task="generate", max_context=2048),
    ServedModel(name="caller", task="generate", tool_format="hermes"),
    ServedModel(name="thinker", task="generate", tool_format="hermes", reasoning_format="think"),
    ServedModel(name="seer", task="generate", takes_images=True),
    ServedModel(name="mini", task="embed", dim=4, max_context=256),
    ServedModel(name="judge", task="rerank"),
    ServedModel(name="pipeline/rag-docs", task="pipeline"),
)
DONE = Completed(usage=Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3))
USER = [{"role": "user", "content": "Hi"}]


def asked(*models: ServedModel) -> Asked:
    catalog = Catalog(60.0)
    catalog.update("worker-1", "llm-worker", models or MODELS, 0.0)
    return Asked("chatcmpl-1", 1_700_000_000, 0.0, catalog)


def plan(operation: Operation, **body: Any) -> Planned:
    return operation.plan(json.dumps(body).encode(), asked())


def plan_chat(model: str = "plain", **body: Any) -> Planned:
    return plan(ChatOperation(), **({"model": model, "messages": USER} | body))


def plan_completion(**body: Any) -> Planned:
    return plan(CompletionOperation(), **({"model": "plain", "prompt": "Once"} | body))


def generate(planned: Planned, index: int = 0) -> Generate:
    work = planned.works[index]
    assert isinstance(work, Generate)
    return work


def end(planned: Planned, *events: Sequence[Event]) -> Any:
    """Answer work after work, each with its events, and decode the whole body."""
    for index, each in enumerate(events):
        assert planned.answer.add(index, each) == b""
    return json.loads(planned.answer.end())


def chunks(planned: Planned, *events: Sequence[Event]) -> list[Any]:
    """Answer work after work, one event at a time, and decode the data events but `[DONE]`."""
    data = b"".join(planned.answer.add(index, [event]) for index, each in enumerate(events) for event in each)
    data += planned.answer.end()
    assert data.endswith(b"data: [DONE]\n\n")
    lines = data.decode().split("\n\n")[:-2]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def texts(*parts: str, done: Completed = DONE) -> list[Event]:
    return [*(Tokens(text=part) for part in parts), done]


def chat_answer(planned: Planned, *events: Sequence[Event]) -> ChatCompletion:
    return ChatCompletion.model_validate(end(planned, *events), strict=True)


def chat_chunks(planned: Planned, *events: Sequence[Event]) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks(planned, *events)]


def completion_answer(planned: Planned, *events: Sequence[Event]) -> Completion:
    return Completion.model_validate(end(planned, *events), strict=True)
