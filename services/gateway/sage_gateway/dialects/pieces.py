"""What a model's raw text is made of, and the contract of the parsers that tell it apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

__all__ = [
    "CallArguments",
    "CallStarted",
    "Content",
    "NewCallId",
    "Parser",
    "Piece",
    "Reasoning",
    "content",
]

NewCallId = Callable[[], str]
"""Makes the id of a tool call; injected, so that tests are deterministic."""


class Content(msgspec.Struct, frozen=True, gc=False):
    """A part of the answer. Never empty."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """A part of what the model wrote before its answer. Never empty."""

    text: str


class CallStarted(msgspec.Struct, frozen=True, gc=False):
    """The model calls function `name`. `index` counts the calls of one answer from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """A part of the arguments of call `index`, JSON text as the model wrote it. Never empty; after its start."""

    index: int
    text: str


Piece = Content | Reasoning | CallStarted | CallArguments


class Parser(Protocol):
    """Tells the pieces of one answer's text apart as it arrives.

    However the text is cut, the pieces are the same but for where neighbours of one kind are cut; no part of a marker
    is ever given out as text. Text that only looks like a call is content. One parser serves one answer.
    """

    def push(self, text: str) -> list[Piece]:
        """Take the next part of the text; return what is certain by now."""
        ...

    def finish(self) -> list[Piece]:
        """Return what was held back; the text is at its end. Called once, last."""
        ...


def content(text: str) -> list[Piece]:
    """Return `text` as content, nothing where it is empty."""
    return [Content(text)] if text else []
