"""From a question to a full-text query, and collection names to files."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest
from sage_operator_worker.names import check_collection_name, file_name
from sage_operator_worker.words import MAX_TERMS, match_expression


@pytest.fixture(scope="module")
def table() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'porter unicode61 remove_diacritics 2')"
    )
    connection.execute("INSERT INTO words VALUES ('set max_payload in the configured file')")
    return connection


def matches(table: sqlite3.Connection, text: str) -> bool:
    expression = match_expression(text)
    if expression is None:
        return False
    return table.execute("SELECT 1 FROM words WHERE words MATCH ?", (expression,)).fetchone() is not None


@given(
    text=st.text(max_size=60)
    | st.sampled_from(['"', 'a" OR "b', "NEAR(", "text:x", "*", "^a", "a AND", "-a\0b"])
)
@settings(max_examples=200, deadline=None)
def test_no_text_is_read_as_query_syntax(text: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'porter unicode61')")
    matches(connection, text)
    connection.close()


def test_words_match_by_stem_parts_and_any_of_them(table: sqlite3.Connection) -> None:
    assert matches(table, "How do I configure it?")
    assert matches(table, "max_payload")
    assert matches(table, "the payload, please")
    assert not matches(table, "unrelated question")
    assert not matches(table, "?!")


def test_common_words_count_only_where_there_are_no_others() -> None:
    assert match_expression("what is the payload") == '"payload"'
    assert match_expression("What is it") == '"what" OR "is" OR "it"'
    assert match_expression("apt-get update") == '"apt" OR "get" OR "apt get" OR "update"'


def test_terms_are_bounded() -> None:
    expression = match_expression(" ".join(f"word{i}" for i in range(1000)))
    assert expression is not None
    assert expression.count(" OR ") == MAX_TERMS - 1


@given(st.text(min_size=1, max_size=40))
def test_any_name_is_one_plain_file_name(name: str) -> None:
    assert set(file_name(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    assert "/" not in file_name(name)
    assert not file_name(name).startswith(".")
    assert file_name(name) != file_name(name + "x")


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\0", "x" * 129])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="expected 1 to 128 printable characters"):
        check_collection_name(name)
    assert check_collection_name("../notes & docs") == "../notes & docs"
