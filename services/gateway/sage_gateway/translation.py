"""From an OpenAI body to SAGE's work. What this version cannot do is refused here by name, never ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from msgspec import Raw

from sage_core import BadRequest, LimitExceeded
from sage_gateway.bodies import (
    MAX_INPUTS,
    MAX_PROMPTS,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    MessageBody,
    RerankBody,
    TextDocument,
)
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Embed,
    Generate,
    Rerank,
    RunPipeline,
    Sampling,
    ServedModel,
    TextPrompt,
    TokenPrompt,
)

__all__ = ["GenerationPlan", "RerankPlan", "plan_chat", "plan_completion", "plan_embedding", "plan_rerank"]

_PIPELINE_PREFIX: Final = "pipeline/"
_COMPLETION_MAX_TOKENS: Final = 16
"""OpenAI's documented default of /v1/completions; chat has none."""
_SMALLEST_TOP_P: Final = 1e-6
_MAX_EMBEDDING_DIMENSIONS: Final = 65_536


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What to submit for a chat or completion: one work per choice, in order."""

    works: list[Generate | RunPipeline]
    is_streamed: bool
    include_usage: bool
    service_tier: str | None = None


@dataclass(frozen=True, slots=True)
class RerankPlan:
    """What to submit for a rerank, and how to answer."""

    work: Rerank
    top_n: int
    return_documents: bool


def plan_chat(body: ChatBody, served: ServedModel) -> GenerationPlan:
    """Return the plan for `body` on `served`. Raises BadRequest naming what is wrong or not supported."""
    _refuse(body.n not in (None, 1), "n", "only one choice per request (n = 1) is supported")
    _refuse(_is_given(body.tools), "tools", "tools are not supported in this version")
    _refuse(
        _is_given(body.tool_choice, b'"none"'), "tool_choice", "only 'none' is supported: there are no tools"
    )
    _refuse(_is_given(body.functions), "functions", "functions are not supported in this version")
    _refuse(_is_given(body.function_call, b'"none"'), "function_call", "functions are not supported")
    _refuse(bool(body.logprobs), "logprobs", "log probabilities are not supported in this version")
    _refuse(bool(body.top_logprobs), "top_logprobs", "log probabilities are not supported in this version")
    _refuse(_is_given(body.modalities, b'["text"]'), "modalities", "only text is generated")
    _refuse(_is_given(body.audio), "audio", "only text is generated")
    _refuse(_is_given(body.web_search_options), "web_search_options", "there is no web search")
    _refuse(bool(body.store), "store", "responses are not stored; leave it out or set it to false")
    _refuse_formats(body)
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)]
    max_tokens = body.max_completion_tokens
    if body.max_tokens is not None:
        _refuse(
            max_tokens not in (None, body.max_tokens),
            "max_tokens",
            "max_tokens and max_completion_tokens are both given and differ; give one",
        )
        max_tokens = body.max_tokens
    sampling = _sampling(body, max_tokens)
    work: Generate | RunPipeline
    if served.task == "pipeline":
        name = served.name.removeprefix(_PIPELINE_PREFIX)
        work = RunPipeline(
            pipeline=name, messages=messages, sampling=sampling, parameters=body.parameters or {}
        )
    else:
        _refuse(bool(body.parameters), "parameters", "only pipelines have parameters")
        work = Generate(model=served.name, prompt=ChatPrompt(messages=messages), sampling=sampling)
    return _generation([work], body)


def plan_completion(body: CompletionBody, served: ServedModel) -> GenerationPlan:
    """Return the plan for `body`, one work per prompt. Raises BadRequest naming what is not supported."""
    _refuse(body.n not in (None, 1), "n", "only one choice per prompt (n = 1) is supported")
    _refuse(body.best_of not in (None, 1), "best_of", "only best_of = 1 is supported")
    _refuse(body.logprobs is not None, "logprobs", "log probabilities are not supported in this version")
    _refuse(bool(body.echo), "echo", "echo is not supported in this version")
    _refuse(bool(body.suffix), "suffix", "insertion is not supported in this version")
    _refuse_formats(body)
    sampling = _sampling(body, body.max_tokens or _COMPLETION_MAX_TOKENS)
    works: list[Generate | RunPipeline] = [
        Generate(model=served.name, prompt=prompt, sampling=sampling) for prompt in _prompts(body.prompt)
    ]
    return _generation(works, body)


def plan_embedding(body: EmbeddingBody, served: ServedModel) -> Embed:
    """Return the work for `body`. Raises BadRequest for empty inputs and for token ids."""
    texts: list[str] = []
    for index, text in enumerate([body.input] if isinstance(body.input, str) else body.input):
        param = "input" if isinstance(body.input, str) else f"input[{index}]"
        if not isinstance(text, str):
            raise BadRequest(
                f"'{param}': token ids are not supported for embeddings in this version; send text",
                param="input",
            )
        _refuse(not text, param, "is empty; every input needs at least one character")
        texts.append(text)
    _refuse(not texts, "input", "is empty; expected text or a list of texts")
    if len(texts) > MAX_INPUTS:
        raise LimitExceeded(
            f"'input': found {len(texts)} texts; at most {MAX_INPUTS} are allowed", param="input"
        )
    limit = served.dim or _MAX_EMBEDDING_DIMENSIONS
    _refuse(
        body.dimensions is not None and body.dimensions > limit,
        "dimensions",
        f"found {body.dimensions}; {served.name} has {limit}",
    )
    return Embed(model=served.name, texts=texts, dimensions=body.dimensions)


def plan_rerank(body: RerankBody, served: ServedModel, *, returns_documents: bool) -> RerankPlan:
    """Return the plan for `body`; `returns_documents` is what the route does where the body does not say."""
    query = _text(body.query)
    _refuse(not query, "query", "is empty")
    documents = [_text(document) for document in body.documents]
    top_n = len(documents) if body.top_n is None else min(body.top_n, len(documents))
    return_documents = returns_documents if body.return_documents is None else body.return_documents
    return RerankPlan(Rerank(model=served.name, query=query, documents=documents), top_n, return_documents)


def _generation(works: list[Generate | RunPipeline], body: ChatBody | CompletionBody) -> GenerationPlan:
    is_streamed = bool(body.stream)
    options = body.stream_options
    _refuse(options is not None and not is_streamed, "stream_options", "is allowed only with stream = true")
    return GenerationPlan(
        works, is_streamed, options is not None and bool(options.include_usage), body.service_tier
    )


def _sampling(body: ChatBody | CompletionBody, max_tokens: int | None) -> Sampling:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    _refuse("" in stop, "stop", "an empty string would stop every answer at once")
    top_p = body.top_p
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        # OpenAI's range includes 0, which leaves only the likeliest token; engines ask for more than 0.
        top_p=None if top_p is None else max(top_p, _SMALLEST_TOP_P),
        stop=stop,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
    )


def _message(message: MessageBody, param: str) -> ChatMessage:
    _refuse(message.role in ("tool", "function"), f"{param}.role", "tools are not supported in this version")
    _refuse(_is_given(message.tool_calls), f"{param}.tool_calls", "tools are not supported in this version")
    _refuse(_is_given(message.function_call), f"{param}.function_call", "functions are not supported")
    _refuse(_is_given(message.audio), f"{param}.audio", "only text is understood")
    return ChatMessage(role=message.role, content=_content(message, f"{param}.content"), name=message.name)


def _content(message: MessageBody, param: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        _refuse(message.role != "assistant", param, f"is missing; a {message.role} message needs text")
        return ""
    texts = []
    for index, part in enumerate(message.content):
        where = f"{param}[{index}]"
        _refuse(
            part.type != "text", f"{where}.type", f"found '{part.type[:40]}'; only text parts are supported"
        )
        if part.text is None:
            raise BadRequest(f"missing required field '{where}.text'", param=f"{where}.text")
        texts.append(part.text)
    return "\n".join(texts)


def _prompts(prompt: str | list[str | int | list[int]]) -> list[TextPrompt | TokenPrompt]:
    if isinstance(prompt, str):
        return [TextPrompt(text=prompt)]
    _refuse(not prompt, "prompt", "is empty; expected text, token ids, or a list of either")
    token_ids = [item for item in prompt if isinstance(item, int)]
    if len(token_ids) == len(prompt):
        return [TokenPrompt(token_ids=token_ids)]
    _refuse(bool(token_ids), "prompt", "mixes token ids and texts; expected one kind")
    if len(prompt) > MAX_PROMPTS:
        raise LimitExceeded(
            f"'prompt': found {len(prompt)} prompts; at most {MAX_PROMPTS} are allowed", param="prompt"
        )
    prompts: list[TextPrompt | TokenPrompt] = []
    for index, item in enumerate(prompt):
        _refuse(item == [], f"prompt[{index}]", "is empty; expected at least one token id")
        if isinstance(item, str):
            prompts.append(TextPrompt(text=item))
        elif isinstance(item, list):
            prompts.append(TokenPrompt(token_ids=item))
    _refuse(
        len({type(item) for item in prompts}) > 1, "prompt", "mixes token ids and texts; expected one kind"
    )
    return prompts


def _refuse_formats(body: ChatBody | CompletionBody) -> None:
    _refuse(
        body.response_format is not None and body.response_format.type != "text",
        "response_format",
        "only {'type': 'text'} is supported in this version",
    )
    _refuse(_is_given(body.logit_bias), "logit_bias", "token biases are not supported in this version")


def _is_given(value: Raw, *harmless: bytes) -> bool:
    """True unless `value` says nothing: null, false, empty, or one of `harmless` (JSON without whitespace)."""
    text = bytes(value).translate(None, b" \t\r\n") if len(bytes(value)) <= 64 else bytes(value)
    return text not in (b"null", b"false", b"[]", b"{}") and text not in harmless


def _text(document: str | TextDocument) -> str:
    return document.text if isinstance(document, TextDocument) else document


def _refuse(is_wrong: bool, param: str, reason: str) -> None:
    if is_wrong:
        raise BadRequest(f"'{param}': {reason}", param=param)
