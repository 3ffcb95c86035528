"""Start a command on one core, bound to its parent's life: `python pinned.py PARENT_PID CORE URGENCY COMMAND…`.

URGENCY `urgent` takes as much precedence over other work on the machine as this user may: a nice value, and that of the
session's autogroup, because a kernel that groups by session weighs those first. `polite` takes none.
Run by path with `-I -S`; the kernel kills the command when the thread that started it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NICE = -15
_AUTOGROUP_NICE = "-19"


def command(core: int, arguments: list[str], *, is_urgent: bool) -> list[str]:
    """Return the argument list that starts `arguments` on `core`."""
    urgency = "urgent" if is_urgent else "polite"
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(core), urgency, *arguments]


def _take_precedence() -> None:
    os.setsid()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
        file.write(_AUTOGROUP_NICE)


def _main() -> int:
    if len(sys.argv) < 5:
        print("pinned: expected PARENT_PID CORE urgent|polite COMMAND…", file=sys.stderr)
        return 2
    parent_pid, core, urgency = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the kernel was told
        return 1
    os.sched_setaffinity(0, {core})
    if urgency == "urgent":
        _take_precedence()
    try:
        os.execvp(sys.argv[4], sys.argv[4:])
    except OSError as error:
        print(f"pinned: cannot start {sys.argv[4]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(_main())
