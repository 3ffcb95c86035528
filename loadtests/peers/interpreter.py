"""The Python that systems run on: the distribution's, as on an operator's host.

Interpreters that version managers build from source are often built without profile-guided optimisation, and slow.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

__all__ = ["interpreter", "interpreter_version"]


@cache
def interpreter() -> str:
    """Return the distribution's Python where it is of this one's minor version and makes environments; else this one.

    The minor version counts, as wheels are built by this one.
    """
    found = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    if found.exists():
        probe = [str(found), "-c", "import ensurepip, venv"]
        if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return str(found)
    return sys.executable


@cache
def interpreter_version() -> str:
    """Return what `interpreter` calls itself, with its compiler."""
    command = [interpreter(), "-c", "import sys; print(sys.version.replace(chr(10), ' '))"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
