"""The mailbox alone, against a twin that keeps one list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_actor.mailbox import Mailbox

OPERATIONS = st.lists(st.sampled_from(["shared", "narrow", "take", "release", "remove"]), max_size=120)


@given(OPERATIONS, st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_limits_hold_and_order_is_kept_whatever_happens(
    operations: list[str], max_waiting: int, max_slots: int, narrow_slots: int
) -> None:
    mailbox: Mailbox[int] = Mailbox(max_waiting, max_slots)
    lanes = {"shared": mailbox.lane(), "narrow": mailbox.lane(narrow_slots)}
    limits = {"shared": max_slots, "narrow": min(narrow_slots, max_slots)}
    waiting: list[tuple[str, int]] = []
    running: list[str] = []
    for number, operation in enumerate(operations):
        if operation in lanes:
            admitted = mailbox.admit(lanes[operation], number)
            assert admitted == (len(waiting) < max_waiting)
            if admitted:
                waiting.append((operation, number))
        elif operation == "take":
            expected = None
            if len(running) < max_slots:
                expected = next((one for one in waiting if running.count(one[0]) < limits[one[0]]), None)
            taken = mailbox.take()
            assert (taken and taken[1]) == (expected and expected[1])
            if expected is not None:
                waiting.remove(expected)
                running.append(expected[0])
        elif operation == "release" and running:
            mailbox.release(lanes[running.pop(0)])
        elif operation == "remove":
            removed = mailbox.remove(lambda item: item % 3 == 0)
            assert sorted(removed) == [item for _, item in waiting if item % 3 == 0]
            waiting = [one for one in waiting if one[1] % 3]
        assert (mailbox.num_waiting, mailbox.num_running) == (len(waiting), len(running))
        assert mailbox.is_full == (len(waiting) >= max_waiting)
        assert mailbox.is_idle == (not waiting and not running)


@pytest.mark.parametrize("item", [None, 0, ""])
def test_items_that_are_false_are_items(item: Any) -> None:
    mailbox: Mailbox[Any] = Mailbox(1, 1)
    mailbox.admit(mailbox.lane(), item)
    taken = mailbox.take()
    assert taken is not None
    assert taken[1] == item
