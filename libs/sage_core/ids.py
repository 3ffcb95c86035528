"""Identifiers: unguessable, sortable by nothing, safe in subjects, file names and HTTP headers."""

from __future__ import annotations

import os

__all__ = ["new_id"]

_ALPHABET = b"0123456789abcdefghijklmnopqrstuvwxyz"
# Every byte below 252 (7 * 36) stands for one character; the four above would favour the first ones.
_CHARACTERS = bytes(_ALPHABET[byte % 36] for byte in range(256))
_UNUSED = bytes(range(252, 256))


def new_id(prefix: str = "", length: int = 16) -> str:
    """Return `prefix-xxxxxxxxxxxxxxxx`; 16 characters of [0-9a-z] carry 82 bits."""
    found = b""
    while len(found) < length:
        # One system call for all characters: a call per character costs 25 us per id.
        found += os.urandom(length + 8).translate(_CHARACTERS, _UNUSED)
    body = found[:length].decode()
    return f"{prefix}-{body}" if prefix else body
