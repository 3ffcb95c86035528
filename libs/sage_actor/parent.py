"""Dying with one's supervisor: the kernel kills this process when its parent ends, kill -9 included.

https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

__all__ = ["die_with_parent"]

PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> bool:
    """Ask for SIGKILL at the death of `parent_pid`; False where it is not (or no longer) our parent.

    The kernel watches the thread that started us: a supervisor starts its children from a thread that lives on.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    # The parent may have died before the call above: the kernel would then never tell us.
    return os.getppid() == parent_pid
