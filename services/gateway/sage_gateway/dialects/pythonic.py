"""Calls as a list of Python calls, `[weather(city="Bern"), clock()]`, as ToolACE and Llama 4 write them.

https://github.com/meta-llama/llama-models
"""

from __future__ import annotations

import ast
import warnings
from typing import Final

import msgspec

from sage_gateway.dialects.pieces import CallArguments, CallStarted, NewCallId, Piece, content

__all__ = ["PythonicParser"]

_MAX_CHARS: Final = 65_536
_MAX_SPACE: Final = 256
_TAGS: Final = ("<|python_start|>", "<|python_end|>")


class PythonicParser:
    """A whole answer is calls or content, so what begins like a list is held back until its end.

    It is calls where every function is one of `known` and every argument a literal given by name.
    """

    def __init__(self, new_id: NewCallId, known: frozenset[str]) -> None:
        self._new_id = new_id
        self._known = known
        self._state = "start"
        self._held: list[str] = []

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        if self._state == "text":
            return content(text)
        self._held.append(text)
        if self._state == "start":
            text = "".join(self._held)
            begin = text.lstrip()
            if len(text) - len(begin) > _MAX_SPACE or not (
                begin.startswith(("[", _TAGS[0])) or _TAGS[0].startswith(begin)
            ):
                self._state = "text"
                return self._release()
            if begin.startswith(("[", _TAGS[0])):
                self._state = "list"
        return []

    def finish(self) -> list[Piece]:
        """See Parser."""
        if self._state == "text":
            return []
        text = "".join(self._held)
        calls = self._calls(text.strip().removeprefix(_TAGS[0]).removesuffix(_TAGS[1]).strip())
        return self._release() if calls is None else calls

    def _release(self) -> list[Piece]:
        text = "".join(self._held)
        self._held.clear()
        return content(text)

    def _calls(self, text: str) -> list[Piece] | None:
        if len(text) > _MAX_CHARS or not text.startswith("["):
            return None
        try:
            with warnings.catch_warnings():
                # Of escapes like `\d`, which the model means as they stand.
                warnings.simplefilter("ignore")
                listed = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        if not isinstance(listed, ast.List) or not listed.elts:
            return None
        pieces: list[Piece] = []
        for index, call in enumerate(listed.elts):
            name = _function_name(call)
            arguments = _arguments(call)
            if name not in self._known or arguments is None:
                return None
            pieces += [CallStarted(index, self._new_id(), name), CallArguments(index, arguments)]
        return pieces


def _function_name(call: ast.expr) -> str:
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""


def _arguments(call: ast.expr) -> str | None:
    if not isinstance(call, ast.Call) or call.args:
        return None
    try:
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        # A `**mapping` has no name.
        return None if None in given else msgspec.json.encode(given).decode()
    except (ValueError, TypeError, RecursionError, MemoryError, UnicodeEncodeError):
        return None
