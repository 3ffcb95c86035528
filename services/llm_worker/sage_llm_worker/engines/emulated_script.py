"""What the emulated engine writes other than its words: reasoning, tool calls, and whatever a structure allows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from sage_core import BadRequest
from sage_llm_worker.engines.emulated_text import NUM_WORDS, WORDS, pieces_of, word_at
from sage_llm_worker.engines.shortest_text import ShortestTexts
from sage_llm_worker.structures import structure_param
from sage_wire.messages import (
    ChatPrompt,
    Generate,
    JsonSchema,
    Sampling,
    TextPrompt,
    TokenPrompt,
    ToolDefinition,
)

__all__ = ["Marks", "Plan", "Planner", "Script", "Twist", "called_tools", "read_marks"]

Script = list[tuple[int, str]]
"""Tokens that are written as they stand, each with its text."""

_MARK: Final = re.compile(r"(?:\A|\n)sage-(output-tokens|reasoning): (\d{1,7})\s*\Z")
_CALL_MARK: Final = re.compile(r"^sage-call: (\S+)[ \t]*$", re.MULTILINE)
_LONGEST_MARKS: Final = 128
_MAX_REASONING: Final = 100_000
_WORD: Final = re.compile(r"[A-Za-z]{4,}")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_STRONG_BIAS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Marks:
    """What the last lines of a prompt ask of this engine: the answer's length, and words of reasoning before it."""

    num_output: int | None = None
    num_reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is written: `script`, then words. `wanted`: tokens after which the answer ends by itself, if it does.

    `is_whole`: the script is the answer, and no words come after it.
    """

    script: Script
    wanted: int | None = None
    is_whole: bool = False


_NO_MARKS: Final = Marks()
_WORDS_ALONE: Final = Plan([])


@dataclass(frozen=True, slots=True)
class Twist:
    """What makes the words of a request others than its prompt does, and what is told of them."""

    forced: int | None
    banned: frozenset[int]
    stop_ids: frozenset[int]
    min_tokens: int
    num_logprobs: int | None

    @classmethod
    def of(cls, sampling: Sampling) -> Twist | None:
        """Return None where nothing of that is asked for."""
        if not (sampling.logit_bias or sampling.stop_token_ids or sampling.logprobs is not None):
            return None
        best = max(sampling.logit_bias, key=lambda bias: bias.bias, default=None)
        return cls(
            forced=best.token_id if best is not None and best.bias >= _STRONG_BIAS else None,
            banned=frozenset(bias.token_id for bias in sampling.logit_bias if bias.bias <= -_STRONG_BIAS),
            stop_ids=frozenset(sampling.stop_token_ids),
            min_tokens=sampling.min_tokens,
            num_logprobs=sampling.logprobs,
        )

    def word_at(self, key: int, index: int) -> int:
        """Return the id that is written at `index` instead of `emulated_text.word_at`."""
        if self.forced is not None:
            return self.forced
        token_id = word_at(key, index)
        for _ in range(NUM_WORDS):
            if token_id not in self.banned and token_id + NUM_WORDS not in self.banned:
                break
            token_id = (token_id + 1) % NUM_WORDS
        return token_id


class Planner:
    """Decides what is written; used from one event loop."""

    def __init__(self) -> None:
        self._shortest = ShortestTexts()

    def close(self) -> None:
        """End its thread. Idempotent."""
        self._shortest.close()

    async def plan(self, request: Generate) -> Plan:
        """Return what `request` gets. Waits only where a structure or a tool's schema is new.

        Raises BadRequest for a structure that cannot be had.
        """
        prompt = request.prompt
        if request.structure is not None:
            beginning = ""
            if isinstance(prompt, ChatPrompt) and prompt.tools:
                # Where a structure allows calls or an answer, calls are a list and the answer is an object.
                called = called_tools(prompt)
                beginning = f'[{{"name":"{called[0].name}"' if called else "{"
            text = await self._shortest.text(request.structure, beginning, param=structure_param(request))
            return _whole([], text)
        marks = read_marks(prompt)
        script = _reasoning(marks.num_reasoning) if marks.num_reasoning else []
        if isinstance(prompt, ChatPrompt) and prompt.tools and (tools := called_tools(prompt)):
            return _whole(script, "\n".join([await self._call(tool) for tool in tools]))
        if marks.num_output is not None:
            return Plan(script, len(script) + marks.num_output)
        return Plan(script) if script else _WORDS_ALONE

    async def _call(self, tool: ToolDefinition) -> str:
        """Return a call as the format `hermes` writes it; without arguments where the schema cannot be enforced."""
        arguments = "{}"
        if tool.parameters:
            try:
                arguments = await self._shortest.text(JsonSchema(schema=tool.parameters))
            except BadRequest:
                arguments = "{}"
        return f'<tool_call>\n{{"name": {json.dumps(tool.name)}, "arguments": {arguments}}}\n</tool_call>'


def read_marks(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> Marks:
    """Read the marks, which may stand in any order, each on a line of its own, after everything else."""
    match prompt:
        case ChatPrompt(messages=messages):
            text = messages[-1].content
        case TextPrompt(text=text):
            pass
        case _:
            return _NO_MARKS
    text = text[-_LONGEST_MARKS:]
    if "sage-" not in text:
        return _NO_MARKS
    found: dict[str, int] = {}
    while (mark := _MARK.search(text)) is not None:
        found.setdefault(mark[1], int(mark[2]))
        text = text[: mark.start()]
    length = found.get("output-tokens")
    num_reasoning = min(found.get("reasoning", 0), _MAX_REASONING)
    return Marks(None if length is None else max(1, length), num_reasoning)


def called_tools(prompt: ChatPrompt) -> list[ToolDefinition]:
    """Return the tools that the prompt's last message, if a user's, asks for, in the order of the definitions.

    Lines `sage-call: NAME` decide alone. Without one, a tool is called whose name, or any word of its name with four
    letters or more, stands in the message: `get_weather` for "What is the weather in Oslo?".
    """
    last = prompt.messages[-1]
    if last.role != "user":
        return []
    if named := set(_CALL_MARK.findall(last.content)):
        return [tool for tool in prompt.tools if tool.name in named]
    text = last.content.lower()
    spoken = set(_WORD.findall(text))
    return [
        tool
        for tool in prompt.tools
        if tool.name.lower() in text
        or not spoken.isdisjoint(word.lower() for word in _WORD.findall(_CAMEL.sub(" ", tool.name)))
    ]


def _reasoning(num_words: int) -> Script:
    """Return reasoning as the format `think` has it."""
    words = [word_at(num_words, index) for index in range(num_words)]
    return [*pieces_of("<think>\n"), *((word, WORDS[word]) for word in words), *pieces_of("\n</think>\n\n")]


def _whole(before: Script, text: str) -> Plan:
    script = [*before, *pieces_of(text)]
    return Plan(script, len(script), is_whole=True)
