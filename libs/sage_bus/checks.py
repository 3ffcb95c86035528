"""What is checked before a byte reaches a socket: subjects, sizes, reply inboxes.

A message over the server's `max_payload` (headers count) or a subject with a space closes the whole client
connection for good, so a bad message is refused here and costs only itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from sage_core import BusError, LimitExceeded
from sage_wire.subjects import check_subject

__all__ = [
    "DEFAULT_MAX_PAYLOAD",
    "check_pattern",
    "check_size",
    "check_target",
    "is_from_stream",
    "is_inbox",
]

DEFAULT_MAX_PAYLOAD: Final = 8 * 2**20
"""What the server template sets; the live value comes from the server's INFO."""

_INBOX_PREFIX: Final = "_INBOX"


@lru_cache(maxsize=8192)
def check_target(subject: str) -> bytes:
    """Return a subject to publish on, encoded. Raises BusError outside the alphabet or over 255 bytes."""
    return check_subject(subject).encode("ascii")


def check_pattern(subject: str) -> str:
    """Return a subject to subscribe to, unchanged; wildcards are allowed. Raises BusError."""
    return check_subject(subject, is_pattern=True)


def is_inbox(subject: str) -> bool:
    """Tell whether a peer's reply subject may be answered.

    Only inboxes may: else a caller could have us publish, with our rights, on a subject it may not write to
    (the confused deputy).
    """
    if not subject.startswith(_INBOX_PREFIX):
        return False
    try:
        check_subject(subject)
    except BusError:
        return False
    return True


def is_from_stream(reply: bytes, block: bytes) -> bool:
    """Tell whether the server delivered this out of a stream instead of a peer having published it.

    Whoever may read a stream can have the server send what is in it to any subject, by naming that as the reply
    subject of the question: past the reader's own rights. So what comes from a stream is no message of a peer.
    """
    return reply.startswith(b"$JS.") or b"\r\nNats-Stream:" in block


def check_size(num_bytes: int, max_payload: int) -> None:
    """Raise LimitExceeded where body plus headers exceed what the server accepts."""
    if num_bytes > max_payload:
        raise LimitExceeded(f"message has {num_bytes} bytes with headers; at most {max_payload} are allowed")
