"""What a collection holds already, and where it came from: what makes indexing resumable and repeats short.

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

__all__ = ["Entry", "Manifest"]

_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SAVE_INTERVAL = 1.0


class Entry(msgspec.Struct, frozen=True):
    """A document that the collection may hold. `digest` is empty where it is not known to be complete.

    `place` is the folder or file it came through; `num_parts` the most parts of it that may be stored.
    """

    digest: str
    place: str
    num_parts: int = 1


class Manifest:
    """The documents of one collection; written at most once a second, and by `save`."""

    def __init__(self, file: Path, entries: dict[str, Entry]) -> None:
        self._file = file
        self._entries = entries
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
            entries = msgspec.json.decode(file.read_bytes(), type=dict[str, Entry])
        except (OSError, msgspec.MsgspecError):
            entries = {}
        return cls(file, entries)

    def has(self, source: str, digest: str) -> bool:
        """True where this very text was indexed under `source`."""
        entry = self._entries.get(source)
        return entry is not None and entry.digest == digest

    def num_parts(self, source: str) -> int:
        """Return how many parts of `source` the collection may hold."""
        entry = self._entries.get(source)
        return 0 if entry is None else entry.num_parts

    def indexed_from(self, place: str) -> list[str]:
        """Return the sources that came through `place`."""
        return [source for source, entry in self._entries.items() if entry.place == place]

    def begin(self, source: str, place: str, num_parts: int) -> None:
        """Note that `source` is about to be replaced: until `add`, parts of either text may be stored."""
        self._set(source, Entry("", place, max(num_parts, self.num_parts(source))))

    def add(self, source: str, digest: str, place: str, num_parts: int = 1) -> None:
        """Note that this text, in `num_parts` parts and no more, is now in the collection."""
        self._set(source, Entry(digest, place, num_parts))

    def adopt(self, source: str, place: str) -> None:
        """Note that a known document is now found through `place`."""
        entry = self._entries[source]
        if entry.place != place:
            self._set(source, msgspec.structs.replace(entry, place=place))

    def remove(self, sources: Iterable[str]) -> None:
        """Note that documents are no longer in the collection."""
        for source in sources:
            self._entries.pop(source, None)
        self._is_changed = True

    def forget_all(self) -> None:
        """Treat every document as new, still knowing where each came from."""
        self._entries = {
            source: msgspec.structs.replace(entry, digest="") for source, entry in self._entries.items()
        }
        self._is_changed = True

    def save(self) -> None:
        """Write the file, complete or not at all."""
        self._saved_at = time.monotonic()
        if not self._is_changed:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._file.with_suffix(".json.new")
        temporary.write_bytes(msgspec.json.encode(self._entries))
        temporary.replace(self._file)
        self._is_changed = False

    def _set(self, source: str, entry: Entry) -> None:
        self._entries[source] = entry
        self._is_changed = True
        if time.monotonic() - self._saved_at >= _SAVE_INTERVAL:
            self.save()
