"""The one way in which operations say that a field is wrong."""

from __future__ import annotations

from sage_core import BadRequest, LimitExceeded

__all__ = ["missing", "too_many", "wrong"]


def wrong(param: str, reason: str) -> BadRequest:
    """Return the error that names `param`, to be raised."""
    return BadRequest(f"'{param}': {reason}", param=param)


def missing(param: str) -> BadRequest:
    """Return the error of a field that is not there."""
    return BadRequest(f"missing required field '{param}'", param=param)


def too_many(param: str, found: int, limit: int, what: str) -> LimitExceeded:
    """Return the error for `found` of what there may be `limit` of."""
    return LimitExceeded(f"'{param}': found {found} {what}; at most {limit} are allowed", param=param)
