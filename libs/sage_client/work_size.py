"""What the scheduler's cost model is told of a request, so that it need not read it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from sage_wire.messages import (
    ChatPrompt,
    Detokenize,
    Embed,
    Generate,
    Index,
    Rerank,
    Retrieve,
    RunPipeline,
    Split,
    TextPrompt,
    Tokenize,
    TokenPrompt,
    Work,
    WorkSize,
)
from sage_wire.prefix import prefix_blocks

__all__ = ["chat_texts", "measure"]

BYTES_PER_TOKEN = 4
"""Of UTF-8: four letters of English, one and a third characters of Chinese."""
TOKENS_PER_MESSAGE = 4
"""What a chat template adds to each message."""
TOKENS_PER_TOOL = 16
"""What a chat template writes around each tool's name, description and parameters."""
TOKENS_PER_CALL = 8
"""What it writes around each tool call of an earlier turn."""
TOKENS_PER_IMAGE = 256
"""What a vision model makes of an image of ordinary size."""
TOKENS_PER_TEXT = 2
"""What an embedding model adds to each text."""


def measure(work: Work) -> WorkSize:
    """Return the size of `work`: items that are done one by one, text read, tokens written at most.

    Token counts are estimates. The prompt of generated text comes with the hashes of its leading blocks, too.
    """
    match work:
        case Generate():
            return _generation(work)
        case Embed(token_ids=token_ids) if token_ids:
            num_tokens = sum(map(len, token_ids))
            return WorkSize(
                num_items=len(token_ids),
                num_chars=BYTES_PER_TOKEN * num_tokens,
                num_prompt_tokens=num_tokens,
            )
        case Embed():
            return _texts(len(work.texts), work.texts)
        case Tokenize(prompt=prompt):
            if isinstance(prompt, TextPrompt):
                return _texts(1, [prompt.text])
            return _texts(1, [text for text, _ in chat_texts(prompt)])
        case Detokenize():
            return WorkSize(num_chars=BYTES_PER_TOKEN * len(work.token_ids))
        case Rerank():
            num_items = len(work.documents)
            read = _texts(num_items, work.documents)
            return WorkSize(
                num_items=num_items,
                num_chars=len(work.query) + read.num_chars,
                # The query is read again with every document.
                num_prompt_tokens=read.num_prompt_tokens + num_items * _num_tokens(work.query),
            )
        case Split():
            return _texts(len(work.documents), [document.text for document in work.documents])
        case Index():
            return _texts(len(work.chunks), [chunk.text for chunk in work.chunks])
        case Retrieve():
            return _texts(1, [work.query])
        case RunPipeline():
            texts = [message.content for message in work.messages]
            texts += [document.text for document in work.documents]
            size = _texts(max(1, len(work.documents)), texts)
            return msgspec.structs.replace(size, max_tokens=work.sampling.max_tokens or 0)


def chat_texts(prompt: ChatPrompt) -> Iterator[tuple[str, int]]:
    """Yield the texts of a chat in the order of most chat templates, each with the tokens counted around it.

    Images are tokens around a text that is empty.
    """
    for tool in prompt.tools:
        yield tool.name + tool.description + tool.parameters, TOKENS_PER_TOOL
    for message in prompt.messages:
        yield message.content, TOKENS_PER_MESSAGE
        if message.images:
            yield "", TOKENS_PER_IMAGE * len(message.images)
        if message.reasoning:
            yield message.reasoning, 0
        for call in message.tool_calls:
            yield call.name + call.arguments, TOKENS_PER_CALL


def _generation(work: Generate) -> WorkSize:
    prompt, resume = work.prompt, work.resume
    match prompt:
        case ChatPrompt():
            num_chars = num_tokens = 0
            for text, num_around in chat_texts(prompt):
                num_chars += len(text)
                num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
                num_tokens += num_around - (-num_bytes // BYTES_PER_TOKEN)
        case TextPrompt(text=text):
            num_chars, num_tokens = len(text), _num_tokens(text)
        case TokenPrompt(token_ids=token_ids):
            num_chars, num_tokens = BYTES_PER_TOKEN * len(token_ids), len(token_ids)
    max_tokens = work.sampling.max_tokens or 0
    if resume is not None:
        num_resumed = max(resume.num_tokens, len(resume.token_ids))
        num_chars += len(resume.text)
        num_tokens += num_resumed
        max_tokens = max(1, max_tokens - num_resumed) if max_tokens else 0
    return WorkSize(
        num_chars=num_chars,
        max_tokens=max_tokens,
        num_prompt_tokens=num_tokens,
        blocks=prefix_blocks(prompt),
    )


def _texts(num_items: int, texts: Sequence[str]) -> WorkSize:
    return WorkSize(
        num_items=num_items,
        num_chars=sum(map(len, texts)),
        num_prompt_tokens=sum(TOKENS_PER_TEXT + _num_tokens(text) for text in texts),
    )


def _num_tokens(text: str) -> int:
    num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-num_bytes // BYTES_PER_TOKEN)
