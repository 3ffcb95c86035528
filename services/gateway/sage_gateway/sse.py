"""The two server-sent events that are the edge's own: the comment of a silent stream, and the failure of one.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from typing import Final

from sage_gateway.errors import HttpError, error_body

__all__ = ["KEEP_ALIVE", "error_event"]

KEEP_ALIVE: Final = b": keep-alive\n\n"


def error_event(error: HttpError) -> bytes:
    """Return the event that ends a stream in failure, without `[DONE]`; clients raise it as an API error."""
    return b"data: " + error_body(error) + b"\n\n"
