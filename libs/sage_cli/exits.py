"""Exit codes and the one-line errors of every command."""

from __future__ import annotations

import enum
from typing import NoReturn

from sage_core import ConfigurationError, SageError

__all__ = ["CommandFailed", "Exit", "exit_code_of", "fail"]


class Exit(enum.IntEnum):
    """What scripts may rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_READY = 4
    INTERRUPTED = 130


class CommandFailed(Exception):
    """Ends a command with one line on stderr and `code`."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """End the command: `message` says what was found, what was expected and what to do."""
    raise CommandFailed(message, code)


def exit_code_of(error: SageError) -> Exit:
    """Return the exit code that stands for an error of a lower layer."""
    return Exit.USAGE if isinstance(error, ConfigurationError) else Exit.FAILED
