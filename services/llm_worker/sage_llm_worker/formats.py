"""How a model writes tool calls and reasoning into its text, told from its chat template. Pure.

Engines send the text as it is, markers included; whoever reads it takes it apart by the names given here.

| tool format | a call is |
|---|---|
| `hermes` | `<tool_call>{"name": …, "arguments": {…}}</tool_call>` |
| `mistral` | `[TOOL_CALLS]`, then a JSON list of calls, or `name[ARGS]{…}` |
| `llama3_json` | `{"name": …, "parameters": {…}}`, after `<|python_tag|>` or alone |
| `pythonic` | `[name(argument=value, …)]` |

| reasoning format | the text begins |
|---|---|
| `think` | with `<think>…</think>` where the model reasons, else with the answer |
| `think_open` | inside the reasoning, as the template itself opened it; `</think>` ends it |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from sage_worker.engine import TextFormats

__all__ = ["AUTO", "NONE", "THINK", "THINK_OPEN", "detect_formats", "is_reasoning_open", "markers_of"]

AUTO: Final = "auto"
NONE: Final = "none"
THINK: Final = "think"
THINK_OPEN: Final = "think_open"

_MARKERS: Final = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "llama3_json": ("<|python_tag|>",),
    "pythonic": ("<|python_start|>", "<|python_end|>"),
    THINK: ("<think>", "</think>"),
    THINK_OPEN: ("<think>", "</think>"),
}
_OPEN: Final = re.compile(r"<think>\s*\Z")


def markers_of(formats: TextFormats, *, has_tools: bool) -> frozenset[str]:
    """Return the markers that must stay in the text even where the tokenizer calls them special tokens.

    Those of tool calls matter only to a request that has tools.
    """
    tools = _MARKERS.get(formats.tools, ()) if has_tools else ()
    return frozenset((*tools, *_MARKERS.get(formats.reasoning, ())))


def is_reasoning_open(prompt: str) -> bool:
    """Return True for a rendered prompt that leaves the model inside its reasoning."""
    return _OPEN.search(prompt) is not None


def detect_formats(
    chat_template: Any, render: Callable[[], str], *, tools: str = AUTO, reasoning: str = AUTO
) -> TextFormats:
    """Return the formats of a chat template (text, texts by name, or None); other values than `auto` win.

    `render` returns the template's prompt for a plain question; it is called where that decides.
    """
    text = "\n".join(chat_template.values()) if isinstance(chat_template, dict) else chat_template or ""
    if tools == AUTO:
        tools = _tool_format(text)
    if reasoning == AUTO:
        reasoning = ""
        if "<think>" in text or "</think>" in text:
            reasoning = THINK_OPEN if is_reasoning_open(render()) else THINK
    return TextFormats(tools="" if tools == NONE else tools, reasoning="" if reasoning == NONE else reasoning)


def _tool_format(template: str) -> str:
    if "<tool_call>" in template:
        # The same tag around something else than JSON: Qwen3-Coder, GLM.
        is_json = "<function=" not in template and "<arg_key>" not in template
        return "hermes" if is_json else ""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<|python_start|>" in template or "func_name1(params_name1" in template:
        return "pythonic"
    if "<|python_tag|>" in template or "ipython" in template:
        return "llama3_json"
    return ""
