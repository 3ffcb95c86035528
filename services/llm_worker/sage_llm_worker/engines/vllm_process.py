"""Imported by vLLM in the process of its engine core, named by `worker_extension_cls`: ends it with its parent.

vLLM's core outlives a worker that is killed, asleep for ever, with its memory (on a GPU: most of it) still taken.
"""

from __future__ import annotations

import multiprocessing
import os

from sage_actor.parent import die_with_parent

__all__ = ["EndsWithParent"]


class EndsWithParent:
    """Adds nothing to vLLM's worker class; naming it is what imports this module there."""


if multiprocessing.parent_process() is not None:
    die_with_parent(os.getppid())
