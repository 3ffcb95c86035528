"""The NATS header block: text to bytes and back, and the budget that keeps running while a message waits."""

from __future__ import annotations

from collections.abc import Mapping

from sage_core import BusError
from sage_wire.headers import BUDGET

__all__ = ["age_headers", "encode_headers", "header_status", "one_line", "parse_headers"]

_VERSION = b"NATS/1.0"


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Return the block, empty for no headers. Raises BusError for what a block cannot hold."""
    if not headers:
        return b""
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BusError(f"header {name!r} is {value!r}; names and values must be text")
        if not name or not name.isascii() or not name.isprintable() or ":" in name or " " in name:
            raise BusError(f"header name {name!r} must be printable ASCII without space and colon")
        if "\r" in value or "\n" in value:
            raise BusError(f"header {name} has a line break in its value")
        lines.append(f"{name}: {value}")
    try:
        return ("\r\n".join(lines) + "\r\n\r\n").encode()
    except UnicodeEncodeError:
        raise BusError("a header value is not valid Unicode") from None


def parse_headers(block: bytes) -> dict[str, str]:
    """Return the headers of a block from a peer. Never raises: what cannot be read is left out."""
    headers = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


def one_line(text: str) -> str:
    """Return text that fits a header value: every run of white space becomes one space."""
    return " ".join(text.split())


def header_status(block: bytes) -> str:
    """Return the server's status, such as `503 No Responders`; empty for an ordinary message."""
    if not block or block[8:9] != b" " or not block.startswith(_VERSION):
        return ""
    return block[9 : block.find(b"\r\n")].decode("ascii", "replace")


def age_headers(headers: Mapping[str, str], waited: float) -> Mapping[str, str] | None:
    """Take `waited` seconds off the budget that a message carries; None once nothing is left.

    A message that waits for a reconnect must not run for a caller that has long given up.
    """
    budget = headers.get(BUDGET)
    if budget is None or not budget.isdigit():
        return headers
    left = int(budget) - int(waited * 1000)
    return {**headers, BUDGET: str(left)} if left > 0 else None
