"""Read a folder of documents: text, Markdown, reStructuredText and HTML, plain or gzipped. What is skipped is counted.

Only text leaves this module: HTML is reduced to its title and main text. Nothing is executed or fetched.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sage_cli.html_text import read_html
from sage_wire.messages import Document

__all__ = ["MAX_DOCUMENT_BYTES", "DocumentReader", "FoundDocument"]

MAX_DOCUMENT_BYTES = 2 * 2**20
"""Larger files are logs, dumps and tables more often than documents."""

_HTML = frozenset({".html", ".htm", ".xhtml"})
_TEXT = frozenset({"", ".txt", ".text", ".md", ".markdown", ".rst", ".asc", ".adoc"})
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__"})
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\s*")
_VERSION_SUFFIX = re.compile(r"\.[0-9]+")


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A document and the hash of its text, by which unchanged documents are known again.

    `place` is the folder or file it was found through, as an absolute path without links.
    """

    document: Document
    digest: str
    place: str = ""


@dataclass(slots=True)
class DocumentReader:
    """Reads documents; `skipped` counts what was left out, by reason, while it goes.

    `unread` holds the sources of files that are there but could not be read, or are too large; `unread_places` the
    places with a folder that could not be listed.
    """

    max_bytes: int = MAX_DOCUMENT_BYTES
    skipped: collections.Counter[str] = field(default_factory=collections.Counter)
    unread: set[str] = field(default_factory=set)
    unread_places: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)

    def read_all(self, places: list[Path]) -> Iterator[FoundDocument]:
        """Yield the documents of folders (sources relative to each) and files (absolute sources), in stable order.

        Raises FileNotFoundError for a place that does not exist.
        """
        for place in places:
            if place.is_dir():
                for file in self._walk(place):
                    for found in self._read(file, str(file.relative_to(place)), is_named=False):
                        yield replace(found, place=str(place.resolve()))
            elif place.exists():
                for found in self._read(place, str(place.absolute()), is_named=True):
                    yield replace(found, place=str(place.resolve()))
            else:
                raise FileNotFoundError(f"{place} does not exist; expected a folder or a file")

    def _read(self, file: Path, source: str, *, is_named: bool) -> Iterator[FoundDocument]:
        try:
            found = self._load(file, source, is_named=is_named)
        except (OSError, EOFError, zlib.error):
            self.skipped["unreadable"] += 1
            self.unread.add(source)
            return
        if isinstance(found, str):
            self.skipped[found] += 1
            if found == "too large":
                self.unread.add(source)
            return
        if found.digest in self._seen:
            self.skipped["duplicate"] += 1
            return
        self._seen.add(found.digest)
        yield found

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yield the files below `folder`, sorted, without hidden ones; links to folders are not followed."""

        def note(_: OSError) -> None:
            self.skipped["unreadable"] += 1
            self.unread_places.add(str(folder.resolve()))

        for root, folders, files in os.walk(folder, onerror=note):
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS
            )
            for name in sorted(files):
                if not name.startswith("."):
                    yield Path(root, name)

    def _load(self, file: Path, source: str, *, is_named: bool) -> FoundDocument | str:
        """Return the document, or the reason why it is none."""
        name = file.name.lower()
        is_gzipped = name.endswith(".gz")
        suffix = Path(name.removesuffix(".gz")).suffix
        # `README.2` is text with a number, not a type of its own.
        suffix = "" if _VERSION_SUFFIX.fullmatch(suffix) and not is_gzipped else suffix
        if not is_named and suffix not in _HTML and suffix not in _TEXT:
            return "not a document type"
        if not file.is_file():
            return "not a regular file"
        if file.stat().st_size > self.max_bytes:
            return "too large"
        with gzip.open(file) if is_gzipped else file.open("rb") as stream:
            data = stream.read(self.max_bytes + 1)
        if len(data) > self.max_bytes:
            return "too large"
        decoded = _decode(data)
        if decoded is None:
            return "binary"
        title, text = read_html(decoded) if suffix in _HTML else (_title(decoded), decoded)
        text = text.strip()
        if not text:
            return "empty"
        digest = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()
        return FoundDocument(Document(source=source, text=text, title=title), digest)


def _decode(data: bytes) -> str | None:
    """Return text without NUL, or None for what is no text. Old documentation is Latin-1 often enough."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    num_control = sum(1 for character in text if character < " " and character not in "\t\n\r\f\x1b")
    num_control += sum(1 for character in text if "\x7f" <= character < "\xa0")
    return text if num_control <= len(text) // 200 else None


def _title(text: str) -> str | None:
    """Return the first heading of Markdown or reStructuredText."""
    lines = [line.rstrip() for line in text.splitlines()[:60]]
    in_front_matter = bool(lines) and lines[0] == "---"
    for number, line in enumerate(lines):
        if in_front_matter:
            in_front_matter = number == 0 or line != "---"
            continue
        before = lines[number - 1] if number else ""
        follower = lines[number + 1] if number + 1 < len(lines) else ""
        is_comment = any(near == "#" or near.startswith("# ") for near in (before, follower))
        if line.startswith("# ") and not is_comment:
            return line[2:].strip(" #") or None
        if line.strip() and _UNDERLINE.fullmatch(follower) and not _UNDERLINE.fullmatch(line):
            return line.strip()
    return None
