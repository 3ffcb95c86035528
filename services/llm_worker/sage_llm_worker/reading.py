"""What a prompt offers a reader: the question, the numbered passages, and their sentences. Pure.

Passages stand in a message between the lines `<context>` and `</context>`, each as `[n] title` and the text below
it, separated by blank lines. Without passages, what was said or pasted earlier in the conversation is the context.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sage_wire.messages import ChatMessage

__all__ = ["Passage", "Reading", "Sentence", "read_messages", "split_sentences"]

_CONTEXT = re.compile(r"^[ \t]*<context>[ \t]*\n(.*?)^[ \t]*</context>[ \t]*$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"\[(\d{1,4})\][ \t]*(.*)")
_MARKDOWN_HEADING = re.compile(r"#{1,6}[ \t]+\S")
_BLANK = re.compile(r"\n[ \t]*\n")
_BULLET = re.compile(r"[-*•‣+][ \t]+|\d{1,3}[.)][ \t]+")
_END = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=[\"'“‘(\[<]*[^\W_a-z])|[。！？]")  # noqa: RUF001 - quotation marks and full stops of several scripts
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|resp|no|fig|vol|pp|mr|mrs|ms|dr|prof|st|inc|ltd|jr|sr|u\.s)|\b[A-Z])\.$",
    re.IGNORECASE,
)
_MAX_SENTENCE: Final = 500
_MIN_PASTED: Final = 200
"""A last message shorter than this is a question, however many paragraphs it has."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One numbered block, or (`number` None) a message of the conversation."""

    number: int | None
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of passage `passage` (index into `Reading.passages`), the `position`-th there."""

    passage: int
    position: int
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt as a reader sees it."""

    question: str
    passages: tuple[Passage, ...]

    def sentences(self) -> list[Sentence]:
        """Return all sentences in reading order."""
        return [
            Sentence(index, position, text)
            for index, passage in enumerate(self.passages)
            for position, text in enumerate(split_sentences(passage.text))
        ]


def read_messages(messages: Sequence[ChatMessage]) -> Reading:
    """Find question and passages. The question is the last user message outside the context; may be empty."""
    numbered: list[Passage] = []
    spoken: list[tuple[str, str]] = []
    for message in messages:
        rest = message.content
        if "<context>" in rest:
            for body in _CONTEXT.findall(rest.replace("\r\n", "\n")):
                numbered += _blocks(body)
            rest = _CONTEXT.sub("", rest.replace("\r\n", "\n"))
        if rest.strip():
            spoken.append((message.role, rest.strip()))
    asked = next((index for index in reversed(range(len(spoken))) if spoken[index][0] == "user"), None)
    if asked is None:
        return Reading("", tuple(numbered))
    question = spoken[asked][1]
    if numbered:
        return Reading(question, tuple(numbered))
    question, pasted = _separate_question(question)
    earlier = [
        Passage(None, "", text) for role, text in spoken[:asked] if role in ("user", "assistant", "tool")
    ]
    return Reading(question, tuple(earlier + pasted))


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text` with their white space collapsed; very long ones are cut."""
    sentences: list[str] = []
    for paragraph in _paragraphs(text):
        start = 0
        for match in _END.finditer(paragraph):
            end = match.end()
            sentence = paragraph[start:end].strip()
            if _ABBREVIATION.search(sentence):
                continue
            sentences.append(sentence)
            start = end
        sentences.append(paragraph[start:].strip())
    return [_shorten(sentence) for sentence in sentences if any(map(str.isalnum, sentence))]


def _blocks(body: str) -> list[Passage]:
    """Read the blocks of one context. Only the next number after a blank line opens a block."""
    passages: list[Passage] = []
    for part in _BLANK.split(body):
        first, _, rest = part.strip().partition("\n")
        heading = _HEADING.fullmatch(first.strip())
        if heading is not None and (not passages or int(heading[1]) == (passages[-1].number or 0) + 1):
            passages.append(Passage(int(heading[1]), heading[2].strip(), rest.strip()))
        elif passages and part.strip():
            last = passages[-1]
            passages[-1] = Passage(last.number, last.title, f"{last.text}\n\n{part.strip()}")
    return passages


def _separate_question(message: str) -> tuple[str, list[Passage]]:
    """Tell a pasted text from the question about it: the last paragraph that asks, else the last one."""
    paragraphs = [part.strip() for part in _BLANK.split(message) if part.strip()]
    if len(message) < _MIN_PASTED or len(paragraphs) < 2:
        return message, []
    asking = [index for index, part in enumerate(paragraphs) if part.endswith("?")]
    chosen = asking[-1] if asking else len(paragraphs) - 1
    pasted = "\n\n".join(paragraphs[:chosen] + paragraphs[chosen + 1 :])
    return paragraphs[chosen], [Passage(None, "", pasted)]


def _paragraphs(text: str) -> list[str]:
    """Join wrapped lines; break at blank lines, at bullets, and after short lines that end nothing.

    Markdown headings are left out: they say what a text is about, and nothing that could be quoted.
    """
    paragraphs: list[str] = []
    current: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        bullet = _BULLET.match(stripped)
        is_markdown_heading = _MARKDOWN_HEADING.match(stripped) is not None
        is_heading = bool(current) and len(current[-1]) < 40 and stripped[:1].isupper()
        if current and (not stripped or bullet or is_heading or is_markdown_heading):
            paragraphs.append(" ".join(current))
            current = []
        if is_markdown_heading:
            continue
        if bullet:
            stripped = stripped[bullet.end() :]
        if stripped:
            current.append(" ".join(stripped.split()))
    if current:
        paragraphs.append(" ".join(current))
    return paragraphs


def _shorten(sentence: str) -> str:
    if len(sentence) <= _MAX_SENTENCE:
        return sentence
    return sentence[:_MAX_SENTENCE].rsplit(" ", 1)[0] + " …"
