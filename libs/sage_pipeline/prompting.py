"""The messages of a `prompt` node. The format of the context is fixed, so that readers of prompts can rely on it:

a system message with the instructions, a user message

    <context>
    [1] title or source
    text of the passage

    [2] …
    </context>

and the question as a separate, last user message. Passages hold no blank line and no line `<context>` or
`</context>`, whatever the documents say: a blank line always ends a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sage_pipeline.nodes import PromptOptions
from sage_pipeline.template import parse_template
from sage_pipeline.values import Hits, Messages, Prompt, Value, text_of
from sage_wire.messages import ChatMessage, Hit

__all__ = ["render_prompt"]

_WITH_CONTEXT = (
    "Answer the question from the numbered passages between <context> and </context>, and from nothing else. "
    "Cite the passages you use as [1], [2]. If they do not hold the answer, say so."
)
_FENCES = {"<context>": "< context>", "</context>": "< /context>"}


def render_prompt(
    options: PromptOptions, inputs: Mapping[str, Value], parameters: Mapping[str, str]
) -> Prompt:
    """Return the messages and the passages quoted in them, in the order of their numbers.

    Raises BadRequest where the question is a conversation without a user message.
    """
    question = inputs["question"]
    slots = dict(parameters) | {
        name: text_of(value) for name, value in inputs.items() if name not in ("context", "question")
    }
    slots["question"] = text_of(question)
    context = inputs.get("context")
    instructions = options.instructions
    if instructions is None:
        instructions = _WITH_CONTEXT if context is not None else ""
    system = [parse_template(instructions).render(slots).strip()]
    earlier: list[ChatMessage] = []
    if isinstance(question, Messages):
        system += [
            message.content for message in question.messages if message.role in ("system", "developer")
        ]
        earlier = _earlier_turns(question, options.history)
    messages = []
    if any(system):
        messages.append(ChatMessage(role="system", content="\n\n".join(text for text in system if text)))
    messages += earlier
    quoted: tuple[Hit, ...] = ()
    if isinstance(context, Hits):
        blocks = _blocks(context.hits, options.max_context_chars)
        quoted = context.hits[: len(blocks)]
        body = "\n\n".join(blocks)
        messages.append(ChatMessage(role="user", content=f"<context>\n{body}\n</context>"))
    messages.append(ChatMessage(role="user", content=parse_template(options.template).render(slots)))
    return Prompt(tuple(messages), quoted)


def _earlier_turns(conversation: Messages, limit: int) -> list[ChatMessage]:
    """Return up to `limit` user and assistant turns before the last user message."""
    last = max(index for index, message in enumerate(conversation.messages) if message.role == "user")
    turns = [message for message in conversation.messages[:last] if message.role in ("user", "assistant")]
    return turns[-limit:] if limit else []


def _blocks(hits: Sequence[Hit], limit: int) -> list[str]:
    """Return whole blocks while they fit in `limit` characters; the first is cut rather than left out."""
    blocks: list[str] = []
    used = 0
    for number, hit in enumerate(hits, 1):
        heading = " ".join((hit.title or hit.source).split())
        lines = (line.rstrip() for line in hit.text.splitlines())
        text = "\n".join(_FENCES.get(line.strip(), line) for line in lines if line)
        block = f"[{number}] {heading}\n{text}".rstrip("\n")
        if used + len(block) > limit:
            if not blocks:
                blocks.append(block[:limit])
            break
        blocks.append(block)
        used += len(block) + 2
    return blocks
