"""A short text that a structure allows, for an engine without a model: byte by byte, what ends soonest."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from sage_core import BadRequest
from sage_llm_worker.structures import StructureCompiler, as_lark, byte_tokenizer, param_of
from sage_wire.messages import JsonObject, OneOf, Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["ShortestTexts", "shortest_text"]

_PREFERRED: Final = b'}])"0123456789' + bytes(range(97, 123)) + bytes(range(65, 91)) + bytes(range(32, 127))
_ORDER: Final = list(dict.fromkeys(_PREFERRED + bytes(range(256))))
_PATIENCE: Final = 8
"""Times that the first choice is made at the same set of choices, before others take turns: `(ab)*c` must end."""
MAX_BYTES: Final = 16384
_MAX_SECONDS: Final = 1.0
_MAX_TEXTS: Final = 256


def shortest_text(matcher: LLMatcher, beginning: str = "") -> str | None:
    """Return a text that `matcher`, at its beginning, allows as a whole; None where `MAX_BYTES` or
    `_MAX_SECONDS` do not suffice.

    It begins with `beginning` where that is allowed, and is empty only where nothing else is. Not always the very
    shortest, but always the same: closing characters go before digits, those before letters. Blocks for some
    microseconds per byte.
    """
    data = bytearray()
    begun = matcher.deep_copy()
    if begun.consume_tokens(list(beginning.encode())):
        matcher, data = begun, bytearray(beginning.encode())
    visits: Counter[bytes] = Counter()
    until = time.monotonic() + _MAX_SECONDS
    while not matcher.is_stopped() and not (data and matcher.is_accepting()):
        if len(data) >= MAX_BYTES or time.monotonic() > until:
            return None
        mask = matcher.compute_bitmask()
        allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        choices = [byte for byte in _ORDER if allowed[byte]]
        if not choices:
            break
        turn = max(0, visits[mask] - _PATIENCE)
        visits[mask] += 1
        byte = choices[turn % len(choices)]
        matcher.consume_token(byte)
        data.append(byte)
    return None if matcher.is_error() else data.decode("utf-8", "replace")


class ShortestTexts:
    """Short texts of structures, remembered; used from one event loop."""

    def __init__(self) -> None:
        self._compiler: StructureCompiler | None = None
        self._opening = asyncio.Lock()
        self._texts: OrderedDict[bytes, str] = OrderedDict()

    async def text(self, structure: Structure, beginning: str = "", *, param: str | None = None) -> str:
        """Return the first option, or what `shortest_text` finds. Raises BadRequest for what cannot be had, as
        `StructureCompiler.matcher` does.
        """
        if isinstance(structure, OneOf) and structure.options and structure.options[0]:
            return structure.options[0]
        key = msgspec.msgpack.encode((structure, beginning))
        known = self._texts.get(key)
        if known is not None:
            self._texts.move_to_end(key)
            return known
        compiler = await self._opened()
        matcher = await compiler.matcher(structure, param=param)
        text = await asyncio.to_thread(shortest_text, matcher, beginning)
        if text is None:
            raise BadRequest(
                f"the emulated engine finds no text of at most {MAX_BYTES} bytes that the structure allows",
                param=param or param_of(structure),
            )
        self._texts[key] = text
        if len(self._texts) > _MAX_TEXTS:
            self._texts.popitem(last=False)
        return text

    async def _opened(self) -> StructureCompiler:
        # One, whoever asks while it is made: another one's process would be left over.
        async with self._opening:
            if self._compiler is None:
                self._compiler = await asyncio.to_thread(_compiler)
        return self._compiler

    def close(self) -> None:
        """End the compiler's thread and process. Idempotent."""
        if self._compiler is not None:
            self._compiler.close()


def _compiler() -> StructureCompiler:
    as_lark(JsonObject())  # says what to do where llguidance is not installed
    return StructureCompiler(byte_tokenizer())
