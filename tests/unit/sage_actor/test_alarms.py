"""One timer for many: each rings when it was last told to, and never after its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sage_actor import Alarms
from sage_core import SystemClock


@dataclass(eq=False)
class Sleeper:
    """Something that waits."""

    name: str
    is_finished: bool = False
    due_at: float | None = None
    queued_at: float | None = None


class HandClock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


_STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "end", "pass"]), st.integers(0, 4), st.integers(1, 20)), max_size=40
)


@settings(max_examples=200, deadline=None)
@given(_STEPS)
def test_each_rings_once_at_the_first_look_after_its_latest_time(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        clock, rung = HandClock(), list[str]()
        alarms = Alarms[Sleeper](clock, lambda item: rung.append(item.name))
        sleepers = [Sleeper(str(number)) for number in range(5)]
        due: dict[str, float] = {}
        for verb, index, amount in steps:
            sleeper = sleepers[index]
            if verb == "set" and not sleeper.is_finished:
                due[sleeper.name] = clock.time + amount
                alarms.set(sleeper, clock.time + amount)
            elif verb == "end":
                sleeper.is_finished = True
                due.pop(sleeper.name, None)
            elif verb == "pass":
                clock.time += amount
                rung.clear()
                alarms._on_timer()
                expected = {name for name, at in due.items() if at <= clock.time}
                assert set(rung) == expected
                assert len(rung) == len(expected)
                for name in expected:
                    del due[name]
        alarms.close()

    asyncio.run(run())


async def test_it_rings_by_itself_and_again_when_set_from_within() -> None:
    times: list[float] = []
    clock = SystemClock()
    done = asyncio.Event()

    def ring(item: Sleeper) -> None:
        times.append(clock.now())
        if len(times) < 3:
            alarms.set(item, clock.now() + 0.005)
        else:
            done.set()

    alarms = Alarms[Sleeper](clock, ring)
    alarms.set(Sleeper("late"), clock.now() + 60)
    alarms.set(Sleeper("a"), clock.now() + 0.005)
    async with asyncio.timeout(1):
        await done.wait()
    assert all(second - first >= 0.004 for first, second in pairwise(times))
    alarms.close()


async def test_one_that_is_put_off_does_not_ring_at_its_first_time() -> None:
    clock, rung = HandClock(), list[str]()
    alarms = Alarms[Sleeper](clock, lambda item: rung.append(item.name))
    sleeper = Sleeper("a")
    alarms.set(sleeper, 1.0)
    alarms.set(sleeper, 2.0)
    clock.time = 1.5
    alarms._on_timer()
    assert rung == []
    alarms.set(sleeper, 1.6)
    clock.time = 1.7
    alarms._on_timer()
    clock.time = 3.0
    alarms._on_timer()
    assert rung == ["a"]
    alarms.close()
