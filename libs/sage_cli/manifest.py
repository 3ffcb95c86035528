"""What a collection holds already, by source and digest: the memory that makes indexing resumable and repeats short.

It lies in the instance's data folder, so it goes when the collections go. Losing it costs time, never correctness:
indexing a document again replaces its passages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sage_core import ConfigurationError

__all__ = ["Manifest"]

_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SAVE_INTERVAL = 1.0


class Manifest:
    """The digests of one collection; written at most once a second, and by `save`."""

    def __init__(self, file: Path, digests: dict[str, str]) -> None:
        self._file = file
        self._digests = digests
        self._saved_at = time.monotonic()
        self._is_changed = False

    @classmethod
    def load(cls, data: Path, collection: str) -> Manifest:
        """Read the manifest; a missing or damaged one is empty. Raises ConfigurationError for a bad name."""
        if _COLLECTION.fullmatch(collection) is None:
            raise ConfigurationError(
                f"--collection is {collection!r}; expected 1 to 64 of letters, digits, '.', '_' and '-'"
            )
        file = data / "indexed" / f"{collection}.json"
        try:
            digests = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            digests = {}
        return cls(file, digests)

    def has(self, source: str, digest: str) -> bool:
        """True where this very text was indexed under `source`."""
        return self._digests.get(source) == digest

    def add(self, entries: Iterable[tuple[str, str]]) -> None:
        """Note documents, as (source, digest), that are now in the collection."""
        self._digests.update(entries)
        self._is_changed = True
        if time.monotonic() - self._saved_at >= _SAVE_INTERVAL:
            self.save()

    def forget_all(self) -> None:
        """Treat every document as new."""
        self._digests.clear()
        self._is_changed = True

    def save(self) -> None:
        """Write the file, complete or not at all."""
        self._saved_at = time.monotonic()
        if not self._is_changed:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._file.with_suffix(".json.new")
        temporary.write_bytes(msgspec.json.encode(self._digests))
        temporary.replace(self._file)
        self._is_changed = False
