"""The beginning of a trace, before its first span."""

from __future__ import annotations

__all__ = ["Root"]


class Root(str):
    """A traceparent without a span behind it yet; the first span started under it takes its ids."""

    __slots__ = ("is_taken",)
    is_taken: bool

    def __new__(cls, traceparent: str) -> Root:
        """Return a root that no span has taken."""
        root = super().__new__(cls, traceparent)
        root.is_taken = False
        return root
