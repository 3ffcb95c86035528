"""Heads of HTTP/1.1 answers as bytes. Pure; what never changes is encoded once."""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

__all__ = ["EVENT_STREAM", "JSON", "STATUS_LINES", "Header", "date_line", "header_lines"]

Header = tuple[bytes, bytes]

JSON: Final = b"application/json"

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
STATUS_LINES: Final = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, reason.encode("ascii")) for status, reason in _REASONS.items()
}

EVENT_STREAM: Final = (
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\n"
    # Reverse proxies that buffer would hold back the first token.
    b"x-accel-buffering: no\r\n"
)


def header_lines(headers: Iterable[Header]) -> bytes:
    """Return `headers` as lines. Names and values are ours: nothing of a client's gets here unchecked."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def date_line(now: float) -> bytes:
    """Return the Date header for `now`, in Unix seconds (RFC 9110 section 6.6.1)."""
    return b"date: %b\r\n" % formatdate(now, usegmt=True).encode("ascii")
