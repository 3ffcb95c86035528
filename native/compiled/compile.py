"""Compile the modules of modules.txt with mypyc, into a folder that is laid out like site-packages.

    python native/compiled/compile.py --work build/compiled --out build/compiled/out

CMake runs it for a wheel. The sources stay as they are, and are what a checkout runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from mypyc.build import mypycify
from setuptools import Distribution
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
GROUP = "sage_compiled"
"""Names the one library that all compiled modules share: they call each other without Python's calling convention."""


def main() -> None:
    """Compile everything anew. Ends with the errors of mypyc or of the C compiler."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for C files and objects")
    parser.add_argument("--out", type=Path, required=True, help="folder for the modules; emptied first")
    arguments = parser.parse_args()
    work, out = arguments.work.resolve(), arguments.out.resolve()
    for folder in (work, out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    # mypyc names C files after the paths it is given, which must be relative.
    os.chdir(REPOSITORY)
    extensions = mypycify(
        [f"--config-file={HERE / 'mypy.ini'}", f"--cache-dir={work / 'mypy-cache'}", *listed()],
        opt_level="3",
        debug_level="0",
        target_dir=str(work / "c"),
        group_name=GROUP,
    )
    command = build_ext(Distribution({"name": GROUP, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(out), str(work / "objects")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    command.run()


def listed() -> list[str]:
    """Return the paths of modules.txt, relative to the repository."""
    lines = (HERE / "modules.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    sys.exit(main())
