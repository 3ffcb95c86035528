"""What a vector store promises, held against a dict."""

from __future__ import annotations

import os
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest, Conflict, Internal, LimitExceeded, NotFound, Unavailable
from sage_operator_worker import Query, RetrievalMode, SqliteVectorStore, StoreLimits, Update
from sage_operator_worker.store import Floats
from sage_wire.messages import Chunk

DIM = 8
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def vector(text: str) -> Floats:
    """One direction per word: texts that share words are near."""
    row = np.array([text.split().count(word) for word in WORDS], dtype=np.float32) + np.float32(0.01)
    return row / np.linalg.norm(row)


def update(passages: dict[str, list[str]], removed: tuple[str, ...] = (), model: str = "m") -> Update:
    chunks = [
        Chunk(source=source, position=position, text=text, title=f"About {source}")
        for source, texts in passages.items()
        for position, text in enumerate(texts)
    ]
    rows = [vector(chunk.text) for chunk in chunks]
    return Update(model, chunks, np.array(rows, dtype=np.float32).reshape(len(rows), DIM), removed)


def everything(store: SqliteVectorStore, collection: str, mode: RetrievalMode) -> dict[tuple[str, int], str]:
    query = Query(" ".join(WORDS), vector("alpha"), 10_000, mode)
    return {(hit.source, hit.position): hit.text for hit in store.retrieve(collection, query)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteVectorStore]:
    opened = SqliteVectorStore(tmp_path / "collections")
    yield opened
    opened.close()


sources = st.sampled_from(["a.txt", "b/ü.html", "c'; DROP TABLE words; --"])
texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), max_size=3)
steps = st.lists(
    st.tuples(st.dictionaries(sources, texts, max_size=3), st.sets(sources, max_size=2), st.booleans()),
    max_size=5,
)


@given(steps=steps)
@settings(max_examples=25, deadline=None)
def test_index_replace_and_delete_equal_a_dict(
    steps: list[tuple[dict[str, list[str]], set[str], bool]],
) -> None:
    model: dict[str, list[str]] = {}
    is_made = False
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteVectorStore(Path(folder))
        for passages, removed, is_reopened in steps:
            info = store.update("docs", update(passages, tuple(removed)))
            model = {source: kept for source, kept in model.items() if source not in removed}
            model |= {source: new for source, new in passages.items() if new}
            assert (info.num_chunks, info.num_sources) == (sum(map(len, model.values())), len(model))
            if is_reopened:
                store.close()
                store = SqliteVectorStore(Path(folder))
            expected = {
                (source, position): text
                for source, kept in model.items()
                for position, text in enumerate(kept)
            }
            is_made = is_made or any(passages.values())
            assert store.collections() == (["docs"] if is_made else [])
            for mode in RetrievalMode if is_made else ():
                assert everything(store, "docs", mode) == expected
        store.close()


def test_indexing_twice_changes_nothing(store: SqliteVectorStore) -> None:
    change = update({"a": ["alpha beta", "gamma"], "b": ["delta"]})
    assert store.update("docs", change) == store.update("docs", change)
    assert len(everything(store, "docs", RetrievalMode.DENSE)) == 3


def test_hybrid_finds_what_words_find_and_what_vectors_find(store: SqliteVectorStore) -> None:
    store.update(
        "docs", update({"words": ["zebra"], "vector": ["alpha alpha"], "other": ["beta"], "rest": ["eta"]})
    )
    hits = store.retrieve("docs", Query("zebra", vector("alpha"), 2))
    assert {hit.source for hit in hits} == {"words", "vector"}
    assert hits[0].score >= hits[1].score
    assert hits[0].title in ("About words", "About vector")
    dense = store.retrieve("docs", Query("zebra", vector("alpha"), 1, RetrievalMode.DENSE))
    assert [hit.source for hit in dense] == ["vector"]
    assert dense[0].score == pytest.approx(1.0, abs=0.01)
    sparse = store.retrieve("docs", Query("zebra", vector("alpha"), 5, RetrievalMode.SPARSE))
    assert [hit.source for hit in sparse] == ["words"]
    assert store.retrieve("docs", Query("?!", vector("alpha"), 5, RetrievalMode.SPARSE)) == []


def test_a_passage_first_by_words_alone_is_not_outvoted_by_the_middle_of_both(
    store: SqliteVectorStore,
) -> None:
    # Twenty passages are near the query and share a common word with it; one is far off but has the rare word.
    store.update("docs", update({f"crowd {i}": ["alpha beta"] for i in range(20)}))
    rare = Chunk(source="rare", position=0, text="max_payload")
    store.update("docs", Update("m", [rare], vector("theta")[None]))
    hits = store.retrieve("docs", Query("beta max_payload", vector("alpha beta"), 8))
    assert "rare" in [hit.source for hit in hits]


def test_a_title_is_searched_like_text(store: SqliteVectorStore) -> None:
    store.update("docs", update({"penguin": ["alpha"], "volcano": ["alpha"]}))
    hits = store.retrieve("docs", Query("tell me about the volcano", vector("alpha"), 1))
    assert [hit.source for hit in hits] == ["volcano"]


def test_another_model_or_dim_is_a_conflict_that_names_both(store: SqliteVectorStore) -> None:
    store.update("docs", update({"a": ["alpha"]}))
    with pytest.raises(Conflict, match="'docs' holds vectors of 'm' with 8 dimensions; found 'other' with 8"):
        store.update("docs", update({"b": ["beta"]}, model="other"))
    wide = Update("m", [Chunk(source="b", position=0, text="x")], np.full((1, 9), 1 / 3, dtype=np.float32))
    with pytest.raises(Conflict, match="found 'm' with 9"):
        store.update("docs", wide)
    with pytest.raises(Conflict, match="found a query vector with 9"):
        store.retrieve("docs", Query("x", wide.vectors[0], 1))
    assert store.describe("docs").num_chunks == 1


def test_an_emptied_collection_takes_another_model(store: SqliteVectorStore) -> None:
    store.update("docs", update({"a": ["alpha"]}))
    store.retrieve("docs", Query("alpha", vector("alpha"), 1))
    assert store.update("docs", update({}, ("a", "never there"))).num_chunks == 0
    wide = Update(
        "other", [Chunk(source="b", position=0, text="x")], np.full((1, 9), 1 / 3, dtype=np.float32)
    )
    info = store.update("docs", wide)
    assert (info.embedding_model, info.dim, info.num_chunks) == ("other", 9, 1)
    assert [hit.source for hit in store.retrieve("docs", Query("q", wide.vectors[0], 3))] == ["b"]


def test_an_unknown_collection_is_named_with_those_there_are(store: SqliteVectorStore) -> None:
    query = Query("x", vector("alpha"), 1)
    with pytest.raises(NotFound, match="'nope' does not exist; there are: none yet"):
        store.retrieve("nope", query)
    store.update("Notes & docs", update({"a": ["alpha"]}))
    store.update("../b", update({"a": ["alpha"]}))
    with pytest.raises(NotFound, match=r"'nope' does not exist; there are: '\.\./b', 'Notes & docs'"):
        store.describe("nope")
    assert store.collections() == ["../b", "Notes & docs"]


def test_a_refused_update_leaves_no_trace(tmp_path: Path) -> None:
    store = SqliteVectorStore(tmp_path, StoreLimits(max_chunks=3, max_collections=1))
    twice = Chunk(source="a", position=0, text="x")
    with pytest.raises(BadRequest, match="source 'a' has position 0 twice"):
        store.update("docs", Update("m", [twice, twice], np.ones((2, DIM), dtype=np.float32)))
    with pytest.raises(LimitExceeded, match="would hold 4 passages; at most 3"):
        store.update("docs", update({"a": ["alpha"] * 4}))
    with pytest.raises(NotFound):
        store.describe("docs")
    assert store.collections() == []
    store.update("docs", update({"a": ["alpha"] * 3}))
    with pytest.raises(LimitExceeded, match="would hold 4"):
        store.update("docs", update({"b": ["beta"]}))
    assert store.update("docs", update({"a": ["beta"] * 3})).num_chunks == 3
    with pytest.raises(LimitExceeded, match="there are 1 collections"):
        store.update("more", update({"a": ["alpha"]}))
    store.close()


def test_two_stores_on_one_folder_see_each_others_updates(tmp_path: Path) -> None:
    left, right = SqliteVectorStore(tmp_path), SqliteVectorStore(tmp_path)
    left.update("docs", update({"a": ["alpha"]}))
    assert everything(right, "docs", RetrievalMode.DENSE) == {("a", 0): "alpha"}
    left.update("docs", update({"b": ["beta"]}, ("a",)))
    assert everything(right, "docs", RetrievalMode.DENSE) == {("b", 0): "beta"}
    right.update("docs", update({"c": ["gamma"]}))
    assert set(everything(left, "docs", RetrievalMode.DENSE)) == {("b", 0), ("c", 0)}
    left.close()
    right.close()


def test_idle_collections_are_closed_and_opened_again(tmp_path: Path) -> None:
    store = SqliteVectorStore(tmp_path, StoreLimits(max_open=2, max_cached_bytes=1))
    for name in "abcd":
        store.update(name, update({name: ["alpha"]}))
        assert len(store._open) <= 2
    for name in "abcd":
        assert everything(store, name, RetrievalMode.DENSE) == {(name, 0): "alpha"}
        assert sum(entry.collection.num_cached_bytes for entry in store._open.values()) <= 1
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.describe("a")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = SqliteVectorStore(tmp_path)
    store.update("docs", update({"a": ["alpha"]}))
    store.close()
    (path,) = tmp_path.glob("*.sqlite3")
    path.write_bytes(b"this is no database, and it never was one" * 50)
    reopened = SqliteVectorStore(tmp_path)
    with pytest.raises(Internal, match="the file of collection 'docs' is damaged"):
        reopened.describe("docs")
    reopened.close()


def test_readers_see_whole_updates_while_a_writer_replaces(store: SqliteVectorStore) -> None:
    def passages(word: str) -> dict[str, list[str]]:
        return {source: [word] * 4 for source in ("a", "b", "c")}

    store.update("docs", update(passages(WORDS[0])))
    seen: list[set[str]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            for mode in RetrievalMode:
                found = everything(store, "docs", mode)
                seen.append({f"{len(found)} {text}" for text in found.values()})

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(1, 30):
        store.update("docs", update(passages(WORDS[i % len(WORDS)])))
    stop.set()
    for reader in readers:
        reader.join()
    assert len(seen) > 10
    assert all(len(texts) == 1 and next(iter(texts)).startswith("12 ") for texts in seen)


def _count_and_die(folder: Path, number: int, change: Update) -> None:
    store = SqliteVectorStore(folder)
    num_statements = 0

    def count(_: str) -> None:
        nonlocal num_statements
        num_statements += 1
        if num_statements == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with store._using("docs", may_create=True) as collection:
        collection._writer.set_trace_callback(count)
    store.update("docs", change)
    os._exit(0)


def _die_at_statement(folder: Path, number: int, change: Update) -> bool:
    """Apply `change` in a process that kill -9 ends before its statement `number`; return whether it got there."""
    child = os.fork()
    if child == 0:
        try:
            _count_and_die(folder, number, change)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@pytest.mark.parametrize("has_earlier_state", [True, False])
def test_a_kill_in_the_middle_of_an_update_leaves_the_previous_state(
    tmp_path: Path, has_earlier_state: bool
) -> None:
    before = {"a": ["alpha one", "alpha two"], "b": ["beta"]}
    after = update({"a": ["gamma"], "c": ["delta"]}, ("b",))
    expected = {("a", 0): "alpha one", ("a", 1): "alpha two", ("b", 0): "beta"}
    num_kills = 0
    for number in [*range(1, 12), *range(12, 100, 3)]:
        folder = tmp_path / str(number)
        store = SqliteVectorStore(folder)
        if has_earlier_state:
            store.update("docs", update(before))
        store.close()
        was_killed = _die_at_statement(folder, number, after)
        store = SqliteVectorStore(folder)
        if not was_killed:
            assert set(everything(store, "docs", RetrievalMode.HYBRID)) == {("a", 0), ("c", 0)}
            store.close()
            break
        num_kills += 1
        if has_earlier_state:
            for mode in (RetrievalMode.DENSE, RetrievalMode.SPARSE):
                words = " ".join(WORDS)
                hits = store.retrieve("docs", Query(words, vector("alpha"), 99, mode))
                assert {(hit.source, hit.position): hit.text for hit in hits} == expected
            assert store.describe("docs").num_sources == 2
        else:
            assert store.collections() == []
        assert store.update("docs", after).num_chunks == 2
        store.close()
        with sqlite3.connect(next(folder.glob("*.sqlite3"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")
        connection.close()
    assert num_kills >= 10
    assert not was_killed
