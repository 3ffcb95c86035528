"""What is wrong with a pipeline, and where: every problem of a file is reported at once, one line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from sage_core import ConfigurationError

__all__ = ["Location", "PipelineError", "Problem", "did_you_mean", "listed"]


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A place in a file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One line for the author: what was found, what is accepted. `location` is None for pipelines made in Python."""

    message: str
    location: Location | None = None

    def __str__(self) -> str:
        return self.message if self.location is None else f"{self.location}: {self.message}"


class PipelineError(ConfigurationError):
    """A pipeline is wrong. `message` has one line per problem, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = sorted(problems, key=lambda problem: problem.location or Location("", 0, 0))
        self.problems = tuple(found)
        super().__init__("\n".join(str(problem) for problem in found))


def listed(words: Iterable[str]) -> str:
    """Return `words` as they are named in a message, in the order given."""
    return ", ".join(words) or "none"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known word, or an empty string where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
