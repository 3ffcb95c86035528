"""Start a command that cannot outlive its parent: `python child.py PARENT_PID -- COMMAND…`.

Run by path with `-I -S`, so it costs milliseconds and imports nothing of SAGE. The kernel kills the command when
the thread that started it ends, `kill -9` included. https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["command"]

_PR_SET_PDEATHSIG = 1


def command(parent_pid: int, arguments: list[str]) -> list[str]:
    """Return the argument list that starts `arguments` as a child bound to `parent_pid`."""
    return [sys.executable, "-I", "-S", __file__, str(parent_pid), "--", *arguments]


def _main() -> int:
    if len(sys.argv) < 4 or not sys.argv[1].isdigit() or sys.argv[2] != "--":
        print("child: expected PARENT_PID -- COMMAND…", file=sys.stderr)
        return 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        print(f"child: prctl failed: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    # The parent may have died before prctl took effect; then the signal never comes.
    if os.getppid() != int(sys.argv[1]):
        return 1
    arguments = sys.argv[3:]
    try:
        os.execv(arguments[0], arguments)  # noqa: S606 - the point of this file; no shell
    except OSError as error:
        print(f"child: cannot start {arguments[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(_main())
