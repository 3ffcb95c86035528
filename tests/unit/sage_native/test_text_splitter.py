"""The text splitter against a twin that reads like its description, and its promises on any text."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sage_native

SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)
GAP = re.compile(f"[{SPACE}]+")
CLOSERS = "\"')]}»’”」』）"  # noqa: RUF001
WIDE_END = re.compile(f"[。！？](?:[{re.escape(CLOSERS)}。！？])*")  # noqa: RUF001


def boundaries(text: str) -> list[tuple[int, int, int]]:
    """(end before, start after, level 1 word to 4 paragraph)."""
    found = []
    for gap in GAP.finditer(text):
        before, after = text[: gap.start()], text[gap.end() :]
        if not before or not after:
            continue
        stripped = before.rstrip(CLOSERS)
        newlines = gap.group().count("\n")
        if newlines:
            level = 4 if newlines > 1 else 3
        elif stripped.endswith(tuple("!?…。！？")) or (  # noqa: RUF001
            stripped.endswith(".") and not re.match("[a-z]", after)
        ):
            level = 2
        else:
            level = 1
        found.append((gap.start(), gap.end(), level))
    wide_ends = [match.end() for match in WIDE_END.finditer(text)]
    found.extend((end, end, 2) for end in wide_ends if end < len(text) and text[end] not in SPACE)
    return sorted(found)


def twin(text: str, chunk: int, overlap: int) -> list[tuple[int, int]]:
    stop = len(text.rstrip(SPACE))
    start = len(text) - len(text.lstrip(SPACE))
    places = boundaries(text)
    passages: list[tuple[int, int]] = []
    while start < stop:
        if stop - start <= chunk:
            return [*passages, (start, stop)]
        ahead = [place for place in places if place[1] > start]
        fitting = [p for p in ahead if chunk / 2 < p[0] - start <= chunk]
        if fitting:
            end, following, _ = max(fitting, key=lambda place: (place[2], place[0]))
        elif text[start + chunk - 1] in SPACE:
            end = start + len(text[start : start + chunk].rstrip(SPACE))
            following = len(text) - len(text[end:].lstrip(SPACE))
            passages.append((start, end))
            start = following
            continue
        else:
            end = following = start + chunk
        passages.append((start, end))
        shared = [p for p in ahead if following - overlap <= p[1] < following]
        sentences = [p for p in shared if p[2] >= 2]
        fallback = following if fitting else end - overlap
        start = (sentences or shared)[0][1] if shared else fallback
    return passages


WORDS = ["a", "B", "it", "wörd", "e.g.", "漢字", "😀", "Averyverylongword", "x" * 25]
MARKS = [".", "?", "!)", "。", "」"]
GAPS = [" ", "  ", " " * 12, "\n", "\n\n", "\r\n \r\n", "\xa0", "\u3000"]
pieces = st.sampled_from([*WORDS, *MARKS, *GAPS])
texts = st.one_of(
    st.lists(pieces, max_size=40).map("".join), st.text(st.characters(codec="utf-8"), max_size=80)
)
sizes = st.integers(1, 40).flatmap(lambda chunk: st.tuples(st.just(chunk), st.integers(0, chunk // 2)))


@given(text=texts, size=sizes)
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_twin(text: str, size: tuple[int, int]) -> None:
    assert sage_native.split_text(text, *size) == twin(text, *size)


@given(text=texts, size=sizes)
@settings(max_examples=200, deadline=None)
def test_passages_hold_all_text_within_their_bounds(text: str, size: tuple[int, int]) -> None:
    chunk, overlap = size
    passages = sage_native.split_text(text, chunk, overlap)
    held = {i for start, end in passages for i in range(start, end)}
    assert all(character in SPACE for i, character in enumerate(text) if i not in held)
    for start, end in passages:
        assert 0 < end - start <= chunk
        assert text[start] not in SPACE
        assert text[end - 1] not in SPACE
    for (start, end), (next_start, next_end) in itertools.pairwise(passages):
        assert start < next_start
        assert end < next_end
        assert end - next_start <= overlap


def cut(text: str, chunk: int, overlap: int = 0) -> list[str]:
    return [text[start:end] for start, end in sage_native.split_text(text, chunk, overlap)]


def test_paragraphs_come_before_lines_before_sentences_before_words() -> None:
    assert cut("aaaa bbbb\n\ncccc. Dddd\neeee", 16) == ["aaaa bbbb", "cccc. Dddd\neeee"]
    assert cut("aaaa bbbb. Cccc\neeee ffff", 18) == ["aaaa bbbb. Cccc", "eeee ffff"]
    assert cut("aaaa bbbb. Cccc dddd", 18) == ["aaaa bbbb.", "Cccc dddd"]
    assert cut("aaaa bbbb e.g. cccc", 17) == ["aaaa bbbb e.g.", "cccc"]


def test_neighbours_share_whole_sentences_where_they_fit_else_words() -> None:
    assert cut("One two three. Four. Five six seven eight.", 22, 10) == [
        "One two three. Four.",
        "Four. Five six seven",
        "six seven eight.",
    ]


def test_a_long_run_is_cut_inside() -> None:
    assert cut("x" * 25, 10, 2) == ["x" * 10, "x" * 10, "x" * 9]


def test_offsets_count_code_points() -> None:
    assert sage_native.split_text("😀é漢 wörld", 5) == [(0, 3), (4, 9)]


@pytest.mark.parametrize(
    ("text", "chunk", "overlap", "complaint"),
    [
        ("a", 0, 0, "chunk_chars is 0; expected at least 1"),
        ("a", -4, 0, "chunk_chars is -4; expected at least 1"),
        ("a", 10, -1, "overlap_chars is -1; expected at least 0"),
        ("a", 10, 6, r"overlap_chars is 6; expected at most half of chunk_chars \(5\)"),
        ("a\ud800", 10, 0, "surrogates not allowed"),
    ],
)
def test_wrong_input_is_refused_saying_what_was_expected(
    text: str, chunk: int, overlap: int, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        sage_native.split_text(text, chunk, overlap)
