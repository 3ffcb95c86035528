from __future__ import annotations

import pytest

from sage_actor.service import EXIT_BUS, EXIT_CLEAN, EXIT_CONFIGURATION, EXIT_CRASHED
from sage_gateway.workers import Restarts

KILLED = -9


def test_a_worker_that_lived_long_is_started_again_at_once() -> None:
    assert Restarts().delay(KILLED, 60.0) == 0.0


def test_one_that_dies_young_waits_longer_each_time_up_to_a_limit() -> None:
    restarts = Restarts()
    delays = [restarts.delay(EXIT_CRASHED, 0.1) for _ in range(40)]
    assert delays[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(delay or 0.0 for delay in delays) == 8.0
    assert restarts.delay(EXIT_CRASHED, 60.0) == 0.0
    assert restarts.delay(EXIT_CRASHED, 0.1) == 0.25


def test_one_that_ended_cleanly_was_drained_and_stays_away() -> None:
    assert Restarts().delay(EXIT_CLEAN, 5.0) is None


@pytest.mark.parametrize("code", [EXIT_CONFIGURATION, EXIT_BUS])
def test_a_first_start_that_can_never_work_is_final_and_a_later_one_is_tried_again(code: int) -> None:
    restarts = Restarts()
    assert restarts.is_final(code)
    assert restarts.delay(code, 0.5) is None
    restarts.has_been_ready = True
    assert not restarts.is_final(code)
    assert restarts.delay(code, 0.5) == 0.25
