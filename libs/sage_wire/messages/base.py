"""The base of every message, and the one shape an error has on the wire."""

from __future__ import annotations

import msgspec

from sage_core import SageError, error_from_code

__all__ = ["Message", "WireError"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A MessagePack map at its outside. Unknown fields are ignored, so an older peer reads a newer one.

    Frozen and made in one go, messages never refer to themselves: the garbage collector need not look at them.
    """


class WireError(Message, frozen=True):
    """An error as it crosses the bus: a stable code and its values, never a class."""

    code: str
    message: str
    retryable: bool = False
    param: str | None = None
    retry_after: float | None = None

    @classmethod
    def of(cls, error: SageError) -> WireError:
        """Describe `error` for a peer."""
        return cls(
            code=error.code,
            message=error.message,
            retryable=error.retryable,
            param=error.param,
            retry_after=error.retry_after,
        )

    def raised(self) -> SageError:
        """Rebuild the error, to be raised by the caller."""
        return error_from_code(self.code, self.message, param=self.param, retry_after=self.retry_after)
