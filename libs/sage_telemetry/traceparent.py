"""The header that every request carries: W3C's `traceparent`.

https://www.w3.org/TR/trace-context/#traceparent-header
"""

from __future__ import annotations

import random
from typing import Final

from sage_telemetry.root import Root

__all__ = ["is_sampled", "new_root"]

_NUM_CHARS: Final = 55
_ID_BITS: Final = 192
"""Of a trace's id and a span's together."""


def new_root(sample_ratio: float) -> str:
    """Return the traceparent of a new trace, sampled with probability `sample_ratio`.

    The first span started with it as parent becomes the root span; start that one before any other.
    """
    # Both ids in one number: this is made for every request. That one of them is zero, and so invalid, never happens.
    ids = random.getrandbits(_ID_BITS).to_bytes(_ID_BITS // 8, "big").hex()
    if random.random() >= sample_ratio:
        return f"00-{ids[:32]}-{ids[32:]}-00"
    return Root(f"00-{ids[:32]}-{ids[32:]}-01")


def is_sampled(traceparent: str | None) -> bool:
    """True where the header asks for spans to be recorded."""
    return traceparent is not None and traceparent[-1:] in "13579bdf" and len(traceparent) == _NUM_CHARS
