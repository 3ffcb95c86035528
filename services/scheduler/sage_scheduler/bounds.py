"""What a submit may say of its size. Checked here, as a policy is asked about many requests at once: one that it cannot
represent must cost nobody else an answer.
"""

from __future__ import annotations

from typing import Final

from sage_core import BadRequest
from sage_wire.messages import Submit

__all__ = ["misfit"]

MAX_COUNT: Final = 2**31 - 1
"""Of items, characters and tokens; policies count in 32 bits."""
MAX_BLOCKS: Final = 2**16
_MAX_HASH: Final = 2**64 - 1


def misfit(submit: Submit) -> BadRequest | None:
    """Return why no policy can take `submit`; None where one can."""
    size = submit.size
    counts = (
        ("num_items", size.num_items),
        ("num_chars", size.num_chars),
        ("max_tokens", size.max_tokens),
        ("num_prompt_tokens", size.num_prompt_tokens),
    )
    for name, count in counts:
        if not 0 <= count <= MAX_COUNT:
            return BadRequest(f"'{name}': found {count}; expected 0 to {MAX_COUNT}", param=name)
    if not -MAX_COUNT <= submit.priority <= MAX_COUNT:
        return BadRequest(
            f"'priority': found {submit.priority}; expected a number of 32 bits", param="priority"
        )
    if len(size.blocks) > MAX_BLOCKS or not all(0 <= block <= _MAX_HASH for block in size.blocks):
        return BadRequest(f"'blocks': expected at most {MAX_BLOCKS} hashes of 64 bits", param="blocks")
    return None
