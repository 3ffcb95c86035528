"""A watcher is told every change once, in order, whatever it missed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from sage_bus.bus import Entry
from sage_bus.watch import WatchState


def put(key: str, revision: int) -> Entry:
    return Entry(key, b"%d" % revision, revision)


def gone(key: str, revision: int) -> Entry:
    return Entry(key, None, revision)


def test_a_list_is_told_in_the_order_of_revisions_without_deletions():
    state = WatchState()
    assert state.listed({"b": put("b", 3), "a": put("a", 1), "c": gone("c", 2)}, 3) == [
        put("a", 1),
        put("b", 3),
    ]


def test_consecutive_changes_are_told_at_once():
    state = WatchState()
    state.listed({}, 0)
    assert state.change(put("a", 1)) == [put("a", 1)]
    assert state.change(gone("a", 2)) == [gone("a", 2)]


def test_a_deletion_of_an_unknown_key_is_not_told():
    state = WatchState()
    state.listed({}, 0)
    assert state.change(gone("a", 1)) == []


def test_a_hole_in_the_numbers_asks_for_a_list():
    state = WatchState()
    state.listed({"a": put("a", 1)}, 1)
    assert state.change(put("a", 3)) == []
    assert not state.is_listed
    assert state.listed({"a": put("a", 3), "b": put("b", 2)}, 3) == [put("b", 2), put("a", 3)]


def test_what_vanished_while_away_is_told_as_a_deletion():
    state = WatchState()
    state.listed({"a": put("a", 1), "b": put("b", 2)}, 2)
    state.lose()
    assert state.listed({"b": put("b", 2)}, 5) == [gone("a", 5)]


def test_changes_that_came_while_the_list_was_read_are_told_once():
    state = WatchState()
    assert state.change(put("a", 2)) == []
    assert state.change(put("a", 3)) == []
    assert state.listed({"a": put("a", 2)}, 1) == [put("a", 2), put("a", 3)]


def test_a_newer_sequence_at_the_server_says_that_a_change_is_missing():
    state = WatchState()
    state.listed({}, 4)
    assert not state.is_behind(4)
    assert state.is_behind(5)


@given(st.integers(0, 2**32))
def test_whatever_is_lost_the_watcher_ends_with_the_bucket_as_it_is(seed: int):
    chance = random.Random(seed)
    state = WatchState()
    bucket: dict[str, Entry] = {}
    view: dict[str, bytes] = {}
    revision = 0

    def tell(entries: list[Entry]) -> None:
        for entry in entries:
            if entry.value is None:
                assert view.pop(entry.key, None) is not None
            else:
                view[entry.key] = entry.value

    for _ in range(60):
        action = chance.random()
        if action < 0.7:
            revision += 1
            key = chance.choice("abc")
            entry = gone(key, revision) if chance.random() < 0.3 else put(key, revision)
            bucket[key] = entry
            if chance.random() < 0.9:
                tell(state.change(entry))
        elif action < 0.85:
            # The list is taken after its sequence was read: changes may fall in between.
            last = revision
            for _ in range(chance.randrange(3)):
                revision += 1
                entry = put(chance.choice("abc"), revision)
                bucket[entry.key] = entry
                tell(state.change(entry))
            tell(state.listed(dict(bucket), last))
        else:
            state.lose()
    state.lose()
    tell(state.listed(dict(bucket), revision))
    assert view == {key: entry.value for key, entry in bucket.items() if entry.value is not None}
