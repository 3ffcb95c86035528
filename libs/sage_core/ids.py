"""Identifiers: unguessable, sortable by nothing, safe in subjects, file names and HTTP headers."""

from __future__ import annotations

import secrets

__all__ = ["new_id"]

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_id(prefix: str = "", length: int = 16) -> str:
    """Return `prefix-xxxxxxxxxxxxxxxx`; 16 characters of [0-9a-z] carry 82 bits."""
    body = "".join(secrets.choice(_ALPHABET) for _ in range(length))
    return f"{prefix}-{body}" if prefix else body
