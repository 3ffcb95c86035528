"""From a request's prompt to token ids, with the served model's own tokenizer and chat template."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from sage_core import BadRequest
from sage_llm_worker.formats import AUTO, THINK_OPEN, detect_formats, is_reasoning_open
from sage_llm_worker.limits import num_resumed, refuse_images
from sage_llm_worker.text import decoder_of
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Detokenize,
    Detokenized,
    Generate,
    TextPrompt,
    Tokenize,
    Tokenized,
    TokenPrompt,
    ToolCall,
)
from sage_worker.engine import TextFormats

__all__ = ["FALLBACK_CHAT_TEMPLATE", "Prompt", "PromptReader"]

FALLBACK_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For tokenizers without a chat template (base models): a plain transcript."""

_OPEN_TAG: Final = "<think>"
_CLOSE_TAG: Final = "</think>"
_CLOSING: Final = "\n</think>\n\n"
_OURS: Final = frozenset(
    (
        "messages",
        "conversation",
        "tools",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "tokenizer_kwargs",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
    )
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`ids`: special tokens included, without `resumed`, which an earlier attempt delivered.

    `preface` is text that stands before the first generated token, of no token itself: it says whether the answer
    begins inside the reasoning where that is not so by the model's format.
    """

    ids: list[int]
    resumed: list[int]
    preface: str = ""


class PromptReader:
    """Reads prompts with one tokenizer; not safe to share between two threads, as tokenizers are not."""

    def __init__(
        self, tokenizer: Any, *, vocab_size: int, tool_format: str = AUTO, reasoning_format: str = AUTO
    ) -> None:
        """`vocab_size`: of the model, which may have more tokens than its tokenizer."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._decoders: dict[frozenset[str], Callable[[list[int]], str]] = {}
        question = ChatPrompt(messages=[ChatMessage(role="user", content="Hello")])
        self._formats = TextFormats()
        self._formats = detect_formats(
            tokenizer.chat_template,
            lambda: self._render(question),
            tools=tool_format,
            reasoning=reasoning_format,
        )

    @property
    def formats(self) -> TextFormats:
        """How this model writes tool calls and reasoning."""
        return self._formats

    def read(self, request: Generate) -> Prompt:
        """Return the request's prompt.

        Raises BadRequest for an empty prompt, for ids the model does not have, for tools that the chat template does
        not know, for images, and where it refuses the messages (some insist on alternating roles).
        """
        refuse_images(request)
        prompt = request.prompt
        preface = ""
        match prompt:
            case ChatPrompt():
                text = self._render(prompt)
                if is_reasoning_open(text) and request.structure is not None:
                    # What a structure is for is the answer, not the reasoning before it.
                    text = text.rstrip() + _CLOSING
                preface = self._preface(text, prompt)
                ids = self._chat_ids(text)
            case TextPrompt(text=text):
                ids = self._text_ids(text)
            case TokenPrompt(token_ids=token_ids):
                ids = list(token_ids)
                self._check_ids(ids, "prompt")
        if not ids:
            raise BadRequest("the prompt is empty; expected at least one token", param="prompt")
        return Prompt(ids, self._resumed_ids(request, preface), preface)

    def tokenize(self, request: Tokenize) -> Tokenized:
        """Return the ids of a prompt as `read` does; see `Engine.tokenize`."""
        refuse_images(request)
        prompt, adds = request.prompt, request.adds_special_tokens
        if isinstance(prompt, ChatPrompt):
            ids = self._chat_ids(self._render(prompt), adds)
        else:
            ids = self._text_ids(prompt.text, adds is not False)
        strings = self._tokenizer.convert_ids_to_tokens(ids) if request.with_strings else []
        return Tokenized(token_ids=ids, strings=[string or "" for string in strings])

    def detokenize(self, request: Detokenize) -> Detokenized:
        """Return the text of ids; see `Engine.detokenize`."""
        self._check_ids(request.token_ids, "tokens")
        return Detokenized(text=self.text_of(request.token_ids))

    def echoed_text(self, request: Generate, ids: list[int]) -> str:
        """Return the text of the prompt, whose ids are `ids`; of a chat as its template renders it."""
        return request.prompt.text if isinstance(request.prompt, TextPrompt) else self.text_of(ids)

    def text_of(self, ids: list[int]) -> str:
        """Return the text of ids that the model has, special tokens included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decoder(self, kept: frozenset[str]) -> Callable[[list[int]], str]:
        """Return ids -> text without special tokens but `kept` ones, made once for each `kept` that there is."""
        if kept not in self._decoders:
            self._decoders[kept] = decoder_of(self._tokenizer, kept)
        return self._decoders[kept]

    def _preface(self, text: str, prompt: ChatPrompt) -> str:
        if not self._formats.reasoning or prompt.continues_last:
            return ""
        begins_inside = self._formats.reasoning == THINK_OPEN
        if is_reasoning_open(text) == begins_inside:
            return ""
        return _CLOSE_TAG if begins_inside else _OPEN_TAG

    def _resumed_ids(self, request: Generate, preface: str) -> list[int]:
        """Return the ids of what was delivered; its text is tokenized where it had no ids."""
        resume = request.resume
        if resume is None:
            return []
        # An attempt on another engine may have delivered text without ids, so all of it goes by text then.
        if resume.token_ids and len(resume.token_ids) >= num_resumed(request):
            return list(resume.token_ids)
        text = resume.text.removeprefix(preface)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _render(self, prompt: ChatPrompt) -> str:
        from jinja2 import TemplateError

        if not prompt.messages:
            raise BadRequest("messages is empty; expected at least one message", param="messages")
        if prompt.tools and not self._formats.tools:
            raise BadRequest(
                "this model's chat template takes no tools, so it cannot call any", param="tools"
            )
        arguments = _template_arguments(prompt.template_arguments)
        is_mistral = self._formats.tools == "mistral"
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [_message(message, has_short_ids=is_mistral) for message in prompt.messages],
                    tools=_tools(prompt) or None,
                    chat_template=None if self._tokenizer.chat_template else FALLBACK_CHAT_TEMPLATE,
                    add_generation_prompt=not prompt.continues_last,
                    continue_final_message=prompt.continues_last,
                    tokenize=False,
                    **arguments,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            # A template is a program of the model's authors: it stumbles over what it did not expect, too.
            raise BadRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None

    def _chat_ids(self, text: str, adds_special_tokens: bool | None = None) -> list[int]:
        # Templates write their own special tokens; only the fallback leaves them to the tokenizer.
        adds = not self._tokenizer.chat_template if adds_special_tokens is None else adds_special_tokens
        return self._text_ids(text, adds)

    def _text_ids(self, text: str, adds_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=adds_special_tokens)["input_ids"])

    def _check_ids(self, ids: list[int], param: str) -> None:
        bad = next((token_id for token_id in ids if not 0 <= token_id < self._vocab_size), None)
        if bad is not None:
            raise BadRequest(
                f"token id {bad} is out of vocabulary ({self._vocab_size} tokens); ids are those of the model's own "
                f"tokenizer, and text may be sent instead",
                param=param,
            )


def _message(message: ChatMessage, *, has_short_ids: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {
        # "developer" is OpenAI's newer name of "system"; templates know only the latter.
        "role": "system" if message.role == "developer" else message.role,
        "content": message.content,
    }
    if message.name:
        turn["name"] = message.name
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [_call(call, has_short_ids=has_short_ids) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = _short_id(message.tool_call_id) if has_short_ids else message.tool_call_id
    return turn


def _call(call: ToolCall, *, has_short_ids: bool) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        arguments = call.arguments  # what the model wrote was no JSON; it sees it again as it was
    call_id = _short_id(call.id) if has_short_ids else call.id
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _short_id(call_id: str) -> str:
    """Mistral's templates insist on nine letters and digits."""
    return re.sub(r"[^a-zA-Z0-9]", "", call_id)[-9:].rjust(9, "0")


def _tools(prompt: ChatPrompt) -> list[dict[str, Any]]:
    tools = []
    for tool in prompt.tools:
        try:
            parameters = msgspec.json.decode(tool.parameters) if tool.parameters else _NO_PARAMETERS
        except msgspec.DecodeError:
            raise BadRequest(f"the parameters of tool {tool.name!r} are not JSON", param="tools") from None
        function = {"name": tool.name, "description": tool.description, "parameters": parameters}
        tools.append({"type": "function", "function": function})
    return tools


_NO_PARAMETERS: Final = {"type": "object", "properties": {}}


def _template_arguments(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        arguments = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadRequest(
            f"template arguments cannot be read: {error}", param="chat_template_kwargs"
        ) from None
    taken = sorted(_OURS & arguments.keys())
    if taken:
        raise BadRequest(
            f"template argument {taken[0]!r} is set by the request itself", param="chat_template_kwargs"
        )
    return arguments
