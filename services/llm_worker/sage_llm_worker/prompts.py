"""From a request's prompt to token ids, with the served model's own tokenizer and chat template."""

from __future__ import annotations

from typing import Any, Final

from sage_core import BadRequest
from sage_llm_worker.limits import num_resumed
from sage_wire.messages import ChatPrompt, Generate, TextPrompt

__all__ = ["FALLBACK_CHAT_TEMPLATE", "prompt_ids", "resumed_ids"]

FALLBACK_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For tokenizers without a chat template (base models): a plain transcript."""


def prompt_ids(tokenizer: Any, request: Generate, *, vocab_size: int) -> list[int]:
    """Return the ids of the prompt, special tokens included, without what is resumed.

    Raises BadRequest for an empty prompt, for ids the model does not have, and where the chat template refuses
    the messages (some insist on alternating roles).
    """
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        ids = _chat_ids(tokenizer, prompt)
    elif isinstance(prompt, TextPrompt):
        ids = list(tokenizer(prompt.text)["input_ids"])
    else:
        ids = list(prompt.token_ids)
        bad = next((token_id for token_id in ids if not 0 <= token_id < vocab_size), None)
        if bad is not None:
            raise BadRequest(
                f"token id {bad} is outside the model's vocabulary of {vocab_size}", param="prompt"
            )
    if not ids:
        raise BadRequest("the prompt is empty; expected at least one token", param="prompt")
    return ids


def resumed_ids(tokenizer: Any, request: Generate) -> list[int]:
    """Return the ids of what an earlier attempt delivered; its text is tokenized where it had no ids."""
    resume = request.resume
    if resume is None:
        return []
    # An attempt on another engine may have delivered text without ids, so all of it goes by text then.
    if resume.token_ids and len(resume.token_ids) >= num_resumed(request):
        return list(resume.token_ids)
    return list(tokenizer(resume.text, add_special_tokens=False)["input_ids"]) if resume.text else []


def _chat_ids(tokenizer: Any, prompt: ChatPrompt) -> list[int]:
    from jinja2 import TemplateError

    messages = [
        # "developer" is OpenAI's newer name of "system"; templates know only the latter.
        {"role": "system" if message.role == "developer" else message.role, "content": message.content}
        | ({"name": message.name} if message.name else {})
        for message in prompt.messages
    ]
    if not messages:
        raise BadRequest("messages is empty; expected at least one message", param="messages")
    template = None if tokenizer.chat_template else FALLBACK_CHAT_TEMPLATE
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise BadRequest(
            f"the model's chat template refuses these messages: {error}", param="messages"
        ) from None
    # Templates write their own special tokens; only the fallback leaves them to the tokenizer.
    return list(tokenizer(text, add_special_tokens=template is not None)["input_ids"])
