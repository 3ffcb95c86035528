"""One collection in one SQLite file: the statements, and nothing about threads or memory.

collection  one row: name, embedding model, dim, format, generation (grows with every update)
sources     a source's number
passages    a passage's number, its source and position
vectors     its vector, little-endian float32
words       its title and text, indexed for words (FTS5, which also stores them)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sage_core import Internal
from sage_operator_worker.matrix import Ids, Matrix
from sage_operator_worker.store import CollectionInfo, Floats
from sage_wire.messages import Chunk, Hit

__all__ = [
    "Header",
    "connect",
    "count",
    "create",
    "delete_sources",
    "insert_chunks",
    "load_matrix",
    "match_words",
    "read_header",
    "read_hits",
    "transaction",
    "write_header",
]

_FORMAT: Final = 1
_BUSY_TIMEOUT: Final = 10.0
_TITLE_WEIGHT: Final = 2.0
"""A word in the title says twice as much as one in the text."""

_TABLES: Final = (
    """CREATE TABLE collection (
        name TEXT NOT NULL, embedding_model TEXT NOT NULL, dim INTEGER NOT NULL,
        format INTEGER NOT NULL, generation INTEGER NOT NULL
    ) STRICT""",
    "CREATE TABLE sources (id INTEGER PRIMARY KEY, source TEXT NOT NULL UNIQUE) STRICT",
    """CREATE TABLE passages (
        id INTEGER PRIMARY KEY AUTOINCREMENT, source_id INTEGER NOT NULL REFERENCES sources (id),
        position INTEGER NOT NULL, UNIQUE (source_id, position)
    ) STRICT""",
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY REFERENCES passages (id), vector BLOB NOT NULL) STRICT",
    "CREATE VIRTUAL TABLE words USING fts5 (title, text, tokenize = 'porter unicode61 remove_diacritics 2')",
)


@dataclass(frozen=True, slots=True)
class Header:
    """The one row of `collection`."""

    name: str
    embedding_model: str
    dim: int
    generation: int


def connect(path: Path) -> sqlite3.Connection:
    """Open, or create, the file. The connection may be used by one thread at a time, any thread.

    Write-ahead log: readers and the writer do not wait for each other. Full synchronisation: what is committed
    survives a power cut too; an update is one commit, so this costs little.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, kind: str = "DEFERRED") -> Iterator[None]:
    """Run the block in one transaction: committed if it ends, rolled back if it raises."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read_header(connection: sqlite3.Connection) -> Header | None:
    """Return the header, or None for a file whose first update was cut short."""
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'collection'").fetchone()
    if found is None:
        return None
    row = connection.execute(
        "SELECT format, name, embedding_model, dim, generation FROM collection"
    ).fetchone()
    if row[0] != _FORMAT:
        raise Internal(f"collection {row[1]!r} is stored in format {row[0]}; this version reads {_FORMAT}")
    return Header(*row[1:])


def create(connection: sqlite3.Connection, header: Header) -> None:
    """Create the tables and the header, inside the caller's transaction."""
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(
        "INSERT INTO collection (name, embedding_model, dim, format, generation) VALUES (?, ?, ?, ?, ?)",
        (header.name, header.embedding_model, header.dim, _FORMAT, header.generation),
    )


def write_header(connection: sqlite3.Connection, header: Header) -> None:
    """Replace model, dim and generation."""
    connection.execute(
        "UPDATE collection SET embedding_model = ?, dim = ?, generation = ?",
        (header.embedding_model, header.dim, header.generation),
    )


def count(connection: sqlite3.Connection, header: Header) -> CollectionInfo:
    """Count what the collection holds."""
    num_chunks, num_sources = connection.execute(
        "SELECT (SELECT count(*) FROM vectors), (SELECT count(*) FROM sources)"
    ).fetchone()
    return CollectionInfo(header.name, header.embedding_model, header.dim, num_chunks, num_sources)


def delete_sources(connection: sqlite3.Connection, sources: Sequence[str]) -> Ids:
    """Delete the sources with their passages; return the ids that went. Unknown sources are ignored."""
    removed: list[int] = []
    for source in sources:
        found = connection.execute("SELECT id FROM sources WHERE source = ?", (source,)).fetchone()
        if found is None:
            continue
        ids = connection.execute("SELECT id FROM passages WHERE source_id = ?", found).fetchall()
        connection.executemany("DELETE FROM words WHERE rowid = ?", ids)
        connection.executemany("DELETE FROM vectors WHERE id = ?", ids)
        connection.execute("DELETE FROM passages WHERE source_id = ?", found)
        connection.execute("DELETE FROM sources WHERE id = ?", found)
        removed.extend(row[0] for row in ids)
    return np.array(removed, dtype=np.int64)


def insert_chunks(connection: sqlite3.Connection, chunks: Sequence[Chunk], vectors: Floats) -> Ids:
    """Store chunks of sources that are not there yet; return their new ids, in order."""
    sources: dict[str, int] = {}
    ids = np.empty(len(chunks), dtype=np.int64)
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    for index, chunk in enumerate(chunks):
        source_id = sources.get(chunk.source)
        if source_id is None:
            cursor = connection.execute("INSERT INTO sources (source) VALUES (?)", (chunk.source,))
            source_id = sources[chunk.source] = int(cursor.lastrowid or 0)
        cursor = connection.execute(
            "INSERT INTO passages (source_id, position) VALUES (?, ?)", (source_id, chunk.position)
        )
        passage_id = int(cursor.lastrowid or 0)
        connection.execute(
            "INSERT INTO vectors (id, vector) VALUES (?, ?)", (passage_id, rows[index].tobytes())
        )
        connection.execute(
            "INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", (passage_id, chunk.title, chunk.text)
        )
        ids[index] = passage_id
    return ids


def load_matrix(connection: sqlite3.Connection, header: Header) -> Matrix:
    """Read all vectors, in the caller's transaction."""
    (num_rows,) = connection.execute("SELECT count(*) FROM vectors").fetchone()
    ids = np.empty(num_rows, dtype=np.int64)
    vectors = np.empty((num_rows, header.dim), dtype=np.float32)
    for index, (passage_id, vector) in enumerate(
        connection.execute("SELECT id, vector FROM vectors ORDER BY id")
    ):
        ids[index] = passage_id
        vectors[index] = np.frombuffer(vector, dtype="<f4")
    return Matrix.of(header.generation, ids, vectors)


def match_words(connection: sqlite3.Connection, expression: str, limit: int) -> list[tuple[int, float]]:
    """Return the (id, relevance) of passages that match, best first by BM25; higher is better."""
    rows = connection.execute(
        "SELECT rowid, bm25(words, ?, 1.0) AS score FROM words WHERE words MATCH ? ORDER BY score, rowid LIMIT ?",
        (_TITLE_WEIGHT, expression, limit),
    )
    return [(passage_id, -score) for passage_id, score in rows]


def read_hits(connection: sqlite3.Connection, ranked: Sequence[tuple[int, float]]) -> list[Hit]:
    """Return the passages of (id, score) in the same order."""
    hits = []
    for passage_id, score in ranked:
        source, position, title, text = connection.execute(
            "SELECT source, position, title, text FROM passages JOIN sources ON sources.id = source_id "
            "JOIN words ON words.rowid = passages.id WHERE passages.id = ?",
            (passage_id,),
        ).fetchone()
        hits.append(Hit(source=source, position=position, text=text, score=score, title=title))
    return hits
