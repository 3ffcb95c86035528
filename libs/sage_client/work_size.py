"""What the scheduler's cost model is told of a request, so that it need not read it. Pure."""

from __future__ import annotations

from sage_wire.messages import (
    ChatPrompt,
    Embed,
    Generate,
    Index,
    Rerank,
    Retrieve,
    RunPipeline,
    Split,
    TextPrompt,
    TokenPrompt,
    Work,
    WorkSize,
)

__all__ = ["measure"]

CHARS_PER_TOKEN = 4


def measure(work: Work) -> WorkSize:
    """Return the size of `work`: items that are done one by one, characters read, tokens written at most."""
    match work:
        case Generate():
            resumed = 0 if work.resume is None else len(work.resume.text)
            return WorkSize(
                num_chars=_prompt_chars(work.prompt) + resumed, max_tokens=work.sampling.max_tokens or 0
            )
        case Embed():
            return WorkSize(num_items=len(work.texts), num_chars=sum(map(len, work.texts)))
        case Rerank():
            num_chars = len(work.query) + sum(map(len, work.documents))
            return WorkSize(num_items=len(work.documents), num_chars=num_chars)
        case Split():
            return WorkSize(
                num_items=len(work.documents),
                num_chars=sum(len(document.text) for document in work.documents),
            )
        case Index():
            return WorkSize(
                num_items=len(work.chunks), num_chars=sum(len(chunk.text) for chunk in work.chunks)
            )
        case Retrieve():
            return WorkSize(num_chars=len(work.query))
        case RunPipeline():
            num_chars = sum(len(message.content) for message in work.messages)
            num_chars += sum(len(document.text) for document in work.documents)
            return WorkSize(
                num_items=max(1, len(work.documents)),
                num_chars=num_chars,
                max_tokens=work.sampling.max_tokens or 0,
            )


def _prompt_chars(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> int:
    match prompt:
        case ChatPrompt():
            return sum(len(message.content) for message in prompt.messages)
        case TextPrompt():
            return len(prompt.text)
        case TokenPrompt():
            return CHARS_PER_TOKEN * len(prompt.token_ids)
