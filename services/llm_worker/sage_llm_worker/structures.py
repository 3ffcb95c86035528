"""What generated text must look like, as a matcher that says after each token which ones may come next.

Every engine compiles structures here, so that a schema means the same on all of them, is refused with the same words,
and an answer may go on under another engine. Compiling is never on the event loop, and bounded in time and memory:
`structure_trial` compiles everything first, in a process that may die of it.

Why llguidance: it reads JSON Schema, regular expressions and grammars in a wheel of 3 MB without dependencies, compiles
lazily (a schema takes about a millisecond, a mask tens of microseconds), names what it does not support, and is one
of vLLM's own backends.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sage_core import BadRequest, EngineError
from sage_llm_worker.structure_trial import StructureTrial
from sage_wire.messages import (
    ChatPrompt,
    Generate,
    Grammar,
    JsonObject,
    JsonSchema,
    OneOf,
    Pattern,
    Structure,
)

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = [
    "COMPILE_SECONDS",
    "StructureCompiler",
    "advance",
    "as_lark",
    "byte_tokenizer",
    "matcher_of",
    "param_of",
    "structure_param",
]

COMPILE_SECONDS: Final = 5.0
"""How long compiling one structure may take, the wait for others before it included."""
_MAX_CACHED: Final = 64
_MAX_CACHED_BYTES: Final = 4 * 2**20
"""Of one structure: what takes more is compiled for each request, so that the cache stays small."""
_NUM_THREADS: Final = 4
"""Structures that are tried at once, most of the time each waiting for its own process: a slow one delays no other."""
_MAX_LEXER_STATES: Final = 65_536
"""What one answer may cost in memory while it is matched: up to 10 kB a state, and a state for most characters."""
_MAX_REASON: Final = 300
_JSON: Final[Any] = {
    # At most one space after a comma or colon. With any white space allowed, weak models pad until `max_tokens`.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # An unknown `format` is an annotation, as JSON Schema says. All else that is skipped comes as a warning, which
    # `matcher_of` refuses.
    "lenient": True,
}


class StructureCompiler:
    """Compiles for one tokenizer; used from one event loop. The latest structures are kept, refused ones too."""

    def __init__(self, tokenizer: LLTokenizer, *, compile_seconds: float = COMPILE_SECONDS) -> None:
        self._tokenizer = tokenizer
        self._compile_seconds = compile_seconds
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="sage-structures")
        self._trial = StructureTrial()
        self._compiled: OrderedDict[bytes, asyncio.Future[_Compiled]] = OrderedDict()

    async def matcher(self, structure: Structure, *, param: str | None = None) -> LLMatcher:
        """Return a matcher at its beginning, the caller's own.

        Raises BadRequest for a structure that cannot be had, naming `param`, by default what `param_of` says.
        """
        key = msgspec.msgpack.encode(structure)
        future = self._compiled.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._threads, self._compile, structure)
            future.add_done_callback(lambda done: self._settle(key, done))
            self._compiled[key] = future
            if len(self._compiled) > _MAX_CACHED:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(key)
        try:
            async with asyncio.timeout(self._compile_seconds):
                compiled = await asyncio.shield(future)
        except TimeoutError:
            raise BadRequest(
                f"the structure took more than {self._compile_seconds:g} s to compile; make it smaller",
                param=param or param_of(structure),
            ) from None
        if compiled.matcher is None:
            raise BadRequest(compiled.refusal, param=param or param_of(structure))
        return compiled.matcher.deep_copy()

    def close(self) -> None:
        """End the threads once they are through, and the process. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._trial.close()

    def _compile(self, structure: Structure) -> _Compiled:
        verdict = self._trial.judge(structure)
        if verdict.refusal:
            return _Compiled(refusal=verdict.refusal)
        try:
            matcher = matcher_of(structure, self._tokenizer)
        except BadRequest as error:  # of this tokenizer, which was not tried
            return _Compiled(refusal=error.message)
        return _Compiled(matcher, is_kept=verdict.num_bytes <= _MAX_CACHED_BYTES)

    def _settle(self, key: bytes, done: asyncio.Future[_Compiled]) -> None:
        is_lost = done.cancelled() or done.exception() is not None or not done.result().is_kept
        if is_lost and self._compiled.get(key) is done:
            del self._compiled[key]


@cache
def byte_tokenizer() -> LLTokenizer:
    """Return llguidance's tokenizer with one token per byte."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def matcher_of(structure: Structure, tokenizer: LLTokenizer) -> LLMatcher:
    """Compile. Blocks; raises BadRequest for a structure that cannot be had."""
    grammar = as_lark(structure)

    from llguidance import LLMatcher
    from llguidance._lib import LLParserLimits

    limits = LLParserLimits(verbose_errors=False, max_lexer_states=_MAX_LEXER_STATES)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0, limits=limits)
    refused = [text for text in matcher.get_grammar_warnings() if not text.startswith("Unknown format")]
    reason = matcher.get_error() or "; ".join(refused)
    if reason:
        raise _refused(structure, reason)
    return matcher


def as_lark(structure: Structure) -> str:
    """Return the structure as a grammar in llguidance's dialect of Lark. Raises BadRequest for what cannot be read."""
    try:
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark
    except ImportError:
        raise BadRequest(
            "structured output needs llguidance; install sage-serve[llm] on this worker's host",
            param=param_of(structure),
        ) from None
    match structure:
        case JsonSchema(schema=schema):
            try:
                decoded = msgspec.json.decode(schema)
            except (msgspec.DecodeError, RecursionError) as error:
                raise _refused(structure, f"it is not JSON: {error}") from None
            if not isinstance(decoded, dict):
                raise _refused(structure, "a schema must be an object")
            return _json_lark(decoded)
        case JsonObject():
            return _json_lark({"type": "object"})
        case Pattern(regex=regex):
            # In Lark a regular expression stands between slashes, which llguidance knows best how to escape.
            found = msgspec.json.decode(LLMatcher.grammar_from_regex(regex), type=_Grammars)
            return found.grammars[0].lark_grammar
        case OneOf(options=texts):
            if not any(texts):
                raise _refused(structure, "there is nothing to choose from")
            return "start: " + " | ".join(json.dumps(text) for text in texts if text)
        case Grammar(ebnf=ebnf):
            try:
                return str(any_to_lark(ebnf))
            except Exception as error:  # the converter raises bare exceptions with the line at fault
                raise _refused(structure, str(error)) from None


def advance(matcher: LLMatcher, token_ids: list[int]) -> None:
    """Take what an earlier attempt delivered. Raises EngineError where the structure does not allow it."""
    if token_ids and not matcher.consume_tokens(token_ids):
        raise EngineError("what was delivered so far is not the beginning of what the structure allows")


def param_of(structure: Structure) -> str:
    """Return the request's field that brings such a structure."""
    return "response_format" if isinstance(structure, JsonSchema | JsonObject) else "structured_outputs"


def structure_param(request: Generate) -> str | None:
    """Return the field that brought the structure of `request`, where that is not what `param_of` says.

    With tools, the structure is that of their calls.
    """
    return "tools" if isinstance(request.prompt, ChatPrompt) and request.prompt.tools else None


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A matcher, or why there is none."""

    matcher: LLMatcher | None = None
    refusal: str = ""
    is_kept: bool = True


class _LarkGrammar(msgspec.Struct):
    lark_grammar: str


class _Grammars(msgspec.Struct):
    grammars: list[_LarkGrammar]


def _json_lark(schema: dict[str, Any]) -> str:
    return "start: %json " + msgspec.json.encode(schema | {"x-guidance": _JSON}).decode()


def _refused(structure: Structure, reason: str) -> BadRequest:
    line = " ".join(reason.split())
    if len(line) > _MAX_REASON:
        line = line[:_MAX_REASON] + " …"
    return BadRequest(f"the structure of the output cannot be enforced: {line}", param=param_of(structure))
