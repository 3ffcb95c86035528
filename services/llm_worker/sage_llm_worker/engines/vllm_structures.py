"""Grammars that begin in the middle: a plugin of vLLM, loaded by it in every process of its engine.

vLLM matches a grammar against what it generates itself, so an answer that another worker began would have to begin
anew. The grammar of a resumed request therefore carries the tokens that were delivered, in a comment, and the grammar
that vLLM compiles of it has taken them before the first step. `pyproject.toml` registers this plugin with vLLM; where
`VLLM_PLUGINS` leaves it out, the engine notices and ends such requests with an error.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["delivered_ids", "register", "with_delivered"]

_MARK: Final = "// sage-delivered:"
_DELIVERED: Final = re.compile(rf"{_MARK}((?: \d+)+)\n")


def with_delivered(grammar: str, token_ids: Sequence[int]) -> str:
    """Return `grammar`, which is Lark, to be continued after `token_ids`."""
    return f"{_MARK} {' '.join(map(str, token_ids))}\n{grammar}" if token_ids else grammar


def delivered_ids(grammar: str) -> list[int]:
    """Return the tokens that `with_delivered` put into a grammar."""
    found = _DELIVERED.match(grammar)
    return [int(token_id) for token_id in found[1].split()] if found else []


def register() -> None:
    """Let vLLM's guidance backend take delivered tokens. Called by vLLM, maybe several times in one process."""
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    compile_grammar = GuidanceBackend.compile_grammar
    if getattr(compile_grammar, "continues", False):
        return

    @functools.wraps(compile_grammar)
    def compile_and_continue(
        self: Any, request_type: Any, grammar_spec: str, *rest: Any, **options: Any
    ) -> Any:
        grammar = compile_grammar(self, request_type, grammar_spec, *rest, **options)
        token_ids = delivered_ids(grammar_spec) if isinstance(grammar_spec, str) else []
        if token_ids and not grammar.accept_tokens("delivered", token_ids):
            raise ValueError("what was delivered is not the beginning of what the structure allows")
        return grammar

    compile_and_continue.continues = True  # type: ignore[attr-defined]
    GuidanceBackend.compile_grammar = compile_and_continue
