"""Frames: one per consumer and turn, gapless, split by size, waiting out a full bus."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BusUnavailable, LimitExceeded, Overloaded
from sage_wire import decode
from sage_wire.messages import Completed, Delta, Failed, Frame, Started, Tokens, Vectors, WireError
from sage_worker import FrameWriter, Outlet

STARTED = Started(worker_id="w", model="m")


class Wire:
    """What was published, and a loop whose turns the test ends."""

    def __init__(self, **limits: int) -> None:
        self.time = 0.0
        self.sent: list[tuple[str, bytes]] = []
        self.refusals: deque[Exception] = deque()
        self.soon: list[Callable[[], None]] = []
        self.later: list[Callable[[], None]] = []
        self.writer = FrameWriter(
            self._publish,
            call_soon=self.soon.append,
            call_later=lambda _, callback: self.later.append(callback),
            now=lambda: self.time,
            **limits,
        )

    def _publish(self, subject: str, payload: bytes) -> None:
        if self.refusals:
            raise self.refusals.popleft()
        self.sent.append((subject, payload))

    def end_turn(self) -> None:
        callbacks, self.soon[:] = list(self.soon), []
        for callback in callbacks:
            callback()

    def retry(self) -> None:
        callbacks, self.later[:] = list(self.later), []
        for callback in callbacks:
            callback()

    @property
    def frames(self) -> list[list[Delta]]:
        return [decode(Frame, payload).deltas for _, payload in self.sent]


def test_all_deltas_of_one_turn_for_one_consumer_leave_as_one_frame() -> None:
    wire = Wire()
    outlets = [wire.writer.open(f"r{i}", 0, "sage.v1.frames.a") for i in range(10)]
    for outlet in outlets:
        outlet.emit(STARTED)
    wire.end_turn()
    for outlet in outlets:
        outlet.emit(Tokens(text="first"))
    wire.end_turn()
    wire.sent.clear()
    for outlet in outlets:
        outlet.emit(Tokens(text="second"))
        outlet.emit(Completed())
    assert wire.sent == []
    wire.end_turn()
    assert len(wire.sent) == 1
    assert len(wire.frames[0]) == 20


def test_started_leaves_with_the_first_result() -> None:
    wire = Wire()
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    outlet.start(STARTED)
    wire.end_turn()
    assert wire.sent == []
    outlet.emit(Tokens(text="a"))
    assert [delta.event for delta in wire.frames[0]] == [STARTED, Tokens(text="a")]
    wire.retry()
    outlet.emit(Completed())
    wire.end_turn()
    assert [[delta.seq for delta in frame] for frame in wire.frames] == [[0, 1], [2]]


def test_started_leaves_alone_after_a_moment_without_a_result() -> None:
    wire = Wire()
    outlets = [wire.writer.open(name, 0, "sage.v1.frames.a") for name in ("quick", "slow")]
    for outlet in outlets:
        outlet.start(STARTED)
    assert len(wire.later) == 1, "one timer for all"
    outlets[0].emit(Completed())
    wire.end_turn()
    wire.retry()
    wire.end_turn()
    assert [[(delta.request_id, delta.seq) for delta in frame] for frame in wire.frames] == [
        [("quick", 0), ("quick", 1)],
        [("slow", 0)],
    ]


def gathering(wire: Wire, seconds: float = 0.25) -> Outlet:
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    outlet.gather = seconds
    outlet.start(STARTED)
    return outlet


def test_gathered_text_leaves_as_one_piece_with_the_end() -> None:
    wire = Wire()
    outlet = gathering(wire)
    outlet.emit(Tokens(text="a", token_ids=[1], num_cached=64))
    for text, token_id in (("b", 2), ("c", 3)):
        wire.end_turn()
        outlet.emit(Tokens(text=text, token_ids=[token_id]))
    wire.end_turn()
    assert wire.sent == []
    outlet.emit(Completed())
    wire.end_turn()
    piece = Tokens(text="abc", token_ids=[1, 2, 3], num_tokens=3, num_cached=64)
    assert [delta.event for delta in wire.frames[0]] == [STARTED, piece, Completed()]
    assert [delta.seq for delta in wire.frames[0]] == [0, 1, 2]


def test_gathered_text_waits_no_longer_than_it_may() -> None:
    wire = Wire()
    outlet = gathering(wire)
    for moment, text in ((0.0, "a"), (0.2, "b"), (0.3, "c"), (0.4, "d"), (0.7, "e")):
        wire.time = moment
        outlet.emit(Tokens(text=text))
        wire.end_turn()
    texts = [delta.event.text for frame in wire.frames for delta in frame if isinstance(delta.event, Tokens)]
    assert texts == ["abc", "de"]


def test_ids_that_do_not_stand_for_all_of_a_piece_are_left_out() -> None:
    wire = Wire()
    outlet = gathering(wire)
    outlet.emit(Tokens(text="a", token_ids=[1]))
    outlet.emit(Tokens(text="b"))
    outlet.emit(Completed())
    wire.end_turn()
    assert wire.frames[0][1].event == Tokens(text="ab", num_tokens=2)


def test_an_echoed_prompt_is_cut_alike_whatever_is_gathered() -> None:
    wire = Wire()
    outlet = gathering(wire)
    prompt = [Tokens(text=text, is_prompt=True, num_tokens=0) for text in ("p", "q")]
    for piece in (*prompt, Tokens(text="a"), Tokens(text="b"), Completed()):
        outlet.emit(piece)
    wire.end_turn()
    events = [delta.event for delta in wire.frames[0]]
    assert events == [STARTED, *prompt, Tokens(text="ab", num_tokens=2), Completed()]


def test_two_consumers_get_a_frame_each() -> None:
    wire = Wire()
    wire.writer.open("r1", 0, "sage.v1.frames.a").emit(STARTED)
    wire.writer.open("r2", 0, "sage.v1.frames.b").emit(STARTED)
    wire.end_turn()
    assert [subject for subject, _ in wire.sent] == ["sage.v1.frames.a", "sage.v1.frames.b"]


def test_first_text_leaves_in_the_same_turn_with_what_came_before_it() -> None:
    wire = Wire()
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    outlet.emit(STARTED)
    outlet.emit(Tokens(text="Hel"))
    assert [type(delta.event) for delta in wire.frames[0]] == [Started, Tokens]
    outlet.emit(Tokens(text="lo"))
    assert len(wire.sent) == 1
    wire.end_turn()
    assert len(wire.sent) == 2


def test_nothing_is_sent_after_the_end() -> None:
    wire = Wire()
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    assert outlet.emit(Completed())
    assert not outlet.emit(Failed(error=WireError(code="internal", message="late")))
    assert not outlet.emit(Tokens(text="late"))
    wire.end_turn()
    assert [type(delta.event) for frame in wire.frames for delta in frame] == [Completed]


def test_frames_over_the_limit_are_split_in_order() -> None:
    wire = Wire()
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    for offset in range(20):
        outlet.emit(Vectors(offset=offset, dim=4096, data=bytes(4 * 4096)))
    wire.end_turn()
    assert len(wire.sent) == 2
    assert all(len(payload) <= 256 * 1024 for _, payload in wire.sent)
    assert [delta.seq for frame in wire.frames for delta in frame] == list(range(20))


def test_an_event_that_no_message_can_carry_is_refused_and_leaves_no_gap() -> None:
    wire = Wire(max_delta_bytes=1000)
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    outlet.emit(STARTED)
    with pytest.raises(LimitExceeded, match="at most 1000"):
        outlet.emit(Tokens(text="x" * 2000))
    outlet.emit(Failed(error=WireError(code="limit_exceeded", message="too large")))
    wire.end_turn()
    assert [delta.seq for frame in wire.frames for delta in frame] == [0, 1]


async def test_a_full_bus_is_waited_out_and_slows_the_producer_down() -> None:
    wire = Wire()
    wire.refusals.extend([Overloaded("full"), Overloaded("full")])
    outlet = wire.writer.open("r", 0, "sage.v1.frames.a")
    outlet.emit(STARTED)
    wire.end_turn()
    outlet.emit(Tokens(text="a"))
    assert wire.writer.is_blocked
    waiting = asyncio.create_task(wire.writer.writable())
    await asyncio.sleep(0)
    wire.retry()
    await asyncio.sleep(0)
    assert not waiting.done()
    wire.retry()
    await waiting
    assert not wire.writer.is_blocked
    assert [delta.seq for frame in wire.frames for delta in frame] == [0, 1]


def test_a_closed_bus_drops_frames_and_counts_them() -> None:
    wire = Wire()
    wire.refusals.append(BusUnavailable("closed"))
    wire.writer.open("r", 0, "sage.v1.frames.a").emit(STARTED)
    wire.end_turn()
    assert wire.writer.num_dropped == 1
    assert not wire.writer.is_blocked


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 4), st.sampled_from(["token", "vectors", "completed"])),
            st.sampled_from(["turn", "full", "retry", "flush"]),
        ),
        max_size=80,
    )
)
def test_nothing_is_lost_repeated_or_reordered(steps: list[object]) -> None:
    wire = Wire(max_frame_bytes=600)
    outlets = [wire.writer.open(f"r{i}", 0, f"sage.v1.frames.{'ab'[i % 2]}") for i in range(5)]
    expected: dict[str, list[object]] = defaultdict(list)
    for step in steps:
        match step:
            case "turn":
                wire.end_turn()
            case "full":
                wire.refusals.append(Overloaded("full"))
            case "retry":
                wire.retry()
            case "flush":
                wire.writer.flush()
            case (int() as index, kind):
                event = {
                    "token": Tokens(text=f"t{len(expected[f'r{index}'])}"),
                    "vectors": Vectors(offset=0, dim=64, data=bytes(256)),
                    "completed": Completed(),
                }[str(kind)]
                if outlets[index].emit(event):
                    expected[f"r{index}"].append(event)
    wire.refusals.clear()
    wire.end_turn()
    wire.retry()
    wire.writer.flush()
    got: dict[str, list[object]] = defaultdict(list)
    for frame in wire.frames:
        for delta in frame:
            assert delta.seq == len(got[delta.request_id])
            got[delta.request_id].append(delta.event)
    assert {key: value for key, value in expected.items() if value} == got
    assert all(len(payload) <= 600 for _, payload in wire.sent)
    assert all(sum(isinstance(event, Completed) for event in events) <= 1 for events in got.values())
