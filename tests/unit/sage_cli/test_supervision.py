"""The supervision decides alone; time is a number here."""

from __future__ import annotations

import pytest

from sage_cli.supervision import (
    Command,
    Exited,
    Finish,
    ForceRequested,
    Kill,
    Limits,
    Member,
    Ready,
    SetTimer,
    Silent,
    Spawn,
    State,
    StopRequested,
    Supervision,
    Terminate,
    Timer,
)

LIMITS = Limits(
    first_delay=1.0,
    max_delay=8.0,
    stable_after=30.0,
    max_failed_starts=3,
    stop_timeout=20.0,
    silent_timeout=15.0,
)


def three() -> Supervision:
    return Supervision((Member("bus", 0, 2), Member("front", 1, 0), Member("back", 1, 1)), LIMITS)


def running(now: float = 0.0) -> Supervision:
    supervision = three()
    supervision.start(now)
    supervision.handle(Ready("bus"), now)
    for name in ("front", "back"):
        supervision.handle(Ready(name), now)
    assert supervision.is_ready
    return supervision


def actions(commands: list[Command]) -> list[Command]:
    return [command for command in commands if not isinstance(command, SetTimer)]


def timers(commands: list[Command]) -> list[float]:
    return [command.at for command in commands if isinstance(command, SetTimer)]


def state(supervision: Supervision, name: str) -> State:
    return next(view.state for view in supervision.views() if view.name == name)


def test_only_the_first_stage_starts_at_once() -> None:
    assert three().start(0.0) == [Spawn("bus")]


def test_the_second_stage_starts_when_the_first_is_ready() -> None:
    supervision = three()
    supervision.start(0.0)
    assert supervision.handle(Ready("bus"), 1.0) == [Spawn("front"), Spawn("back")]
    assert supervision.handle(Ready("bus"), 1.1) == []


def test_everything_ready_is_ready() -> None:
    supervision = three()
    supervision.start(0.0)
    supervision.handle(Ready("bus"), 0.0)
    supervision.handle(Ready("front"), 0.0)
    assert not supervision.is_ready
    supervision.handle(Ready("back"), 0.0)
    assert supervision.is_ready


def test_a_killed_process_is_restarted_at_once() -> None:
    supervision = running()
    assert supervision.handle(Exited("back", -9), 5.0) == [Spawn("back")]
    assert not supervision.is_ready
    supervision.handle(Ready("back"), 6.0)
    assert supervision.is_ready
    assert [view.num_restarts for view in supervision.views()] == [0, 0, 1]


def test_a_clean_exit_nobody_asked_for_is_restarted_too() -> None:
    assert running().handle(Exited("front", 0), 5.0) == [Spawn("front")]


def test_the_bus_is_restarted_without_its_dependants() -> None:
    assert running().handle(Exited("bus", -9), 5.0) == [Spawn("bus")]


def test_delays_double_up_to_the_limit_while_it_keeps_failing() -> None:
    supervision = running()
    now, delays = 10.0, []
    for _ in range(7):
        commands = supervision.handle(Exited("back", 1), now)
        if Spawn("back") in commands:
            delays.append(0.0)
            continue
        (at,) = timers(commands)
        delays.append(at - now)
        now = at
        assert Spawn("back") in supervision.handle(Timer(), now)
    assert delays == [0.0, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_stable_life_resets_the_delay() -> None:
    supervision = running()
    supervision.handle(Exited("back", 1), 1.0)
    supervision.handle(Exited("back", 1), 1.1)
    supervision.handle(Timer(), 2.1)
    supervision.handle(Ready("back"), 3.0)
    assert Spawn("back") in supervision.handle(Exited("back", 1), 3.0 + LIMITS.stable_after)


def test_a_process_that_was_ready_once_is_never_given_up() -> None:
    supervision = running()
    now = 0.0
    for _ in range(50):
        supervision.handle(Exited("back", 1), now)
        now += LIMITS.max_delay
        supervision.handle(Timer(), now)
        assert state(supervision, "back") is State.STARTING


def test_a_process_that_never_starts_ends_the_instance_with_status_1_and_its_last_words() -> None:
    supervision = three()
    supervision.start(0.0)
    supervision.handle(Ready("bus"), 0.0)
    supervision.handle(Ready("front"), 0.0)
    now = 0.0
    for attempt in range(LIMITS.max_failed_starts):
        commands = supervision.handle(Exited("back", 1, "no such model"), now)
        if attempt < LIMITS.max_failed_starts - 1:
            now += LIMITS.max_delay
            supervision.handle(Timer(), now)
    assert actions(commands) == [Terminate("front")]
    assert actions(supervision.handle(Exited("front", 0), now)) == [Terminate("bus")]
    (finish,) = supervision.handle(Exited("bus", 0), now)
    assert isinstance(finish, Finish)
    assert finish.status == 1
    assert "back" in finish.reason
    assert "no such model" in finish.reason


def test_status_2_stops_everything_and_is_not_retried() -> None:
    supervision = running()
    line = "sage-back: unknown key 'x'"
    assert actions(supervision.handle(Exited("back", 2, line), 1.0)) == [Terminate("front")]
    supervision.handle(Exited("front", 0), 2.0)
    assert supervision.handle(Exited("bus", 0), 3.0) == [Finish(2, line)]


def test_a_stop_goes_stage_by_stage_and_the_bus_is_last() -> None:
    supervision = running()
    assert supervision.handle(StopRequested(), 0.0) == [Terminate("front"), SetTimer(20.0)]
    assert supervision.handle(Exited("front", 0), 1.0) == [Terminate("back"), SetTimer(21.0)]
    assert supervision.handle(Exited("back", 0), 2.0) == [Terminate("bus"), SetTimer(22.0)]
    assert supervision.handle(Exited("bus", 0), 3.0) == [Finish(0, "")]


def test_who_does_not_end_in_time_is_killed() -> None:
    supervision = running()
    supervision.handle(StopRequested(), 0.0)
    assert Kill("front") in supervision.handle(Timer(), 20.0)
    assert Kill("front") not in supervision.handle(Timer(), 40.0)
    assert Terminate("back") in supervision.handle(Exited("front", -9), 40.0)


def test_a_second_stop_forces() -> None:
    supervision = running()
    supervision.handle(StopRequested(), 0.0)
    commands = supervision.handle(StopRequested(), 1.0)
    assert actions(commands) == [Kill("bus"), Kill("front"), Kill("back")]
    supervision.handle(Exited("front", -9), 1.0)
    supervision.handle(Exited("bus", -9), 1.0)
    assert supervision.handle(Exited("back", -9), 1.0) == [Finish(0, "")]


def test_force_kills_without_a_stop_before() -> None:
    assert actions(running().handle(ForceRequested(), 0.0)) == [Kill("bus"), Kill("front"), Kill("back")]


def test_nothing_is_restarted_during_a_stop() -> None:
    supervision = running()
    supervision.handle(StopRequested(), 0.0)
    assert actions(supervision.handle(Exited("back", -9), 0.5)) == []
    assert actions(supervision.handle(Exited("front", 0), 1.0)) == [Terminate("bus")]


def test_a_stop_during_the_start_ends_what_runs_and_starts_nothing_more() -> None:
    supervision = three()
    supervision.start(0.0)
    assert actions(supervision.handle(StopRequested(), 0.1)) == [Terminate("bus")]
    assert actions(supervision.handle(Ready("bus"), 0.2)) == []
    assert supervision.handle(Exited("bus", 0), 0.3) == [Finish(0, "")]


def test_a_stop_while_backing_off_does_not_wait_for_the_restart() -> None:
    supervision = running()
    supervision.handle(Exited("back", 1), 0.0)
    supervision.handle(Exited("back", 1), 0.0)
    assert state(supervision, "back") is State.BACKING_OFF
    supervision.handle(StopRequested(), 0.1)
    assert actions(supervision.handle(Exited("front", 0), 0.2)) == [Terminate("bus")]


def test_a_silent_process_is_killed_and_restarted() -> None:
    supervision = running()
    assert timers(supervision.handle(Silent("back"), 1.0)) == [16.0]
    assert actions(supervision.handle(Timer(), 16.0)) == [Kill("back")]
    assert actions(supervision.handle(Exited("back", -9), 16.1)) == [Spawn("back")]


def test_a_process_heard_again_in_time_lives() -> None:
    supervision = running()
    supervision.handle(Silent("back"), 1.0)
    supervision.handle(Ready("back"), 10.0)
    assert supervision.handle(Timer(), 16.0) == []


def test_late_and_unknown_events_change_nothing() -> None:
    supervision = running()
    for event in (Exited("nobody", 1), Ready("nobody"), Silent("nobody"), Timer()):
        assert supervision.handle(event, 1.0) == []
    assert supervision.is_ready
    finished = three()
    finished.start(0.0)
    finished.handle(StopRequested(), 0.0)
    finished.handle(Exited("bus", 0), 0.0)
    assert finished.handle(Ready("bus"), 1.0) == []


@pytest.mark.parametrize("order", [("front", "back"), ("back", "front")])
def test_two_deaths_at_once_are_both_restarted(order: tuple[str, str]) -> None:
    supervision = running()
    for name in order:
        assert Spawn(name) in supervision.handle(Exited(name, -9), 1.0)
