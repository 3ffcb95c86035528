"""Collection names, and the file names they become. A name from outside is never a path."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from sage_core import BadRequest

__all__ = ["SUFFIX", "check_collection_name", "file_name"]

SUFFIX: Final = ".sqlite3"
_MAX_NAME: Final = 128
_NOT_PLAIN = re.compile(r"[^a-z0-9]+")


def check_collection_name(name: str) -> str:
    """Return `name`, or raise BadRequest unless it is 1 to 128 printable characters without outer spaces."""
    if not name or len(name) > _MAX_NAME or not name.isprintable() or name != name.strip():
        raise BadRequest(
            f"collection name is {name[:_MAX_NAME]!r}; expected 1 to {_MAX_NAME} printable characters, no outer spaces",
            param="collection",
        )
    return name


def file_name(name: str) -> str:
    """Return the file of a collection: readable at its start, unique by a hash of the whole name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    plain = _NOT_PLAIN.sub("-", name.lower()).strip("-")[:40]
    return f"{plain}-{digest}{SUFFIX}" if plain else f"{digest}{SUFFIX}"
