"""What a request may generate: the same checks for every engine, before anything runs."""

from __future__ import annotations

from sage_core import BadRequest, ContextLengthExceeded
from sage_wire.messages import Generate

__all__ = ["num_resumed", "output_limit"]


def num_resumed(request: Generate) -> int:
    """Return how many tokens an earlier attempt already delivered."""
    if request.resume is None:
        return 0
    return max(request.resume.num_tokens, len(request.resume.token_ids))


def output_limit(request: Generate, *, num_prompt: int, max_context: int, default: int | None = None) -> int:
    """Return how many tokens the answer may have in all, resumed ones included.

    Without `max_tokens`: `default`, at most what the context leaves. Raises BadRequest for a limit below 1 and
    ContextLengthExceeded where prompt and requested output do not fit `max_context`.
    """
    asked = request.sampling.max_tokens
    if asked is not None and asked < 1:
        raise BadRequest(f"max_tokens is {asked}; expected at least 1", param="max_tokens")
    room = max_context - num_prompt
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens; this model takes {max_context} for prompt and answer together",
            param="messages",
        )
    if asked is None:
        return room if default is None else min(default, room)
    if asked > room:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens and max_tokens asks for {asked}; this model takes {max_context} "
            f"together, so at most {room}",
            param="max_tokens",
        )
    return asked
