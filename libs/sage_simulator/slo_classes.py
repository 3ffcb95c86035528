"""Classes of work: how large their share is, what is promised to them, and how long their callers wait."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Final

from sage_core import ConfigurationError
from sage_core.units import parse_duration
from sage_policy import SloClass
from sage_simulator.toml_file import Key, load_toml
from sage_simulator.traces.trace import EMBED, LLM
from sage_simulator.values import Rule, choice, duration, flag, share, text

__all__ = [
    "CLASS_KEYS",
    "DEFAULT_CLASSES",
    "TtftTarget",
    "WorkClass",
    "checked_classes",
    "parse_class",
    "read_classes",
]


@dataclass(frozen=True, slots=True)
class TtftTarget:
    """`seconds` for everybody, and a second more per `tokens_per_second` tokens of the prompt; 0: none."""

    seconds: float
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkClass:
    """A class of runs. `pool`: of runs that end there; "": of all that no other class is for.

    Among the classes of one pool the shares are relative. `budget`: seconds after which the caller has left.
    """

    name: str
    share: float = 1.0
    pool: str = ""
    budget: float = inf
    slo: SloClass = field(default_factory=SloClass)


DEFAULT_CLASSES: Final = (
    WorkClass("chat", pool=LLM, slo=SloClass(ttft=1.0, ttft_tokens_per_second=4000.0, tpot=0.05)),
    WorkClass("embedding", pool=EMBED, slo=SloClass(e2e=0.25)),
)
"""TTFT <= 1 s + input / 4000 tokens/s and TPOT <= 50 ms for what ends in an LLM; 250 ms for embeddings."""

_TIERS: Final = {"interactive": 0, "normal": 1, "batch": 2}
_TTFT: Final = re.compile(r"\s*([^+\s]+)\s*(?:\+\s*in\s*/\s*([0-9]+(?:\.[0-9]+)?)\s*)?")


def _ttft(value: object) -> TtftTarget:
    if isinstance(value, str):
        match = _TTFT.fullmatch(value)
        if match is None:
            raise ValueError(value)
        seconds, rate = parse_duration(match[1]), float(match[2] or 0)
        if match[2] and rate <= 0:
            raise ValueError(value)
        return TtftTarget(seconds, rate)
    return TtftTarget(parse_duration(value))


CLASS_KEYS: Final[dict[str, Key]] = {
    "name": Key(text(64)),
    "share": Key(share(), 1.0),
    "pool": Key(text(64), ""),
    "ttft": Key(Rule(_ttft, "a duration, or one and a rate of prompt tokens: 1s + in/4000"), None),
    "tpot": Key(duration(), None),
    "e2e": Key(duration(), None),
    "budget": Key(duration(), inf),
    "tier": Key(choice(_TIERS), 0),
    "may_shed": Key(flag(), True),
}
"""The keys of a [[class]] and of the command line's short form."""


def read_classes(file: Path) -> tuple[WorkClass, ...]:
    """Read the [[class]] tables of a file. Raises FileMistake."""
    top = load_toml(file)
    top.read({}, {"class": "[[class]]"})
    found = tuple(_class(table.read(CLASS_KEYS)) for table in top.tables("class"))
    if not found:
        raise ConfigurationError(f"{file}: there is no [[class]]; expected one or more")
    return checked_classes(found, str(file))


def parse_class(words: str) -> WorkClass:
    """Read the short form `name:key=value,key=value`, e.g. `tight:share=30%,ttft=500ms+in/8000,tpot=40ms`.

    Raises ConfigurationError naming the key, what was found and what is accepted.
    """
    name, _, rest = words.partition(":")
    values: dict[str, Any] = {"name": name}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"class {words!r}: {pair!r} has no value; expected key=value")
        values[key.strip()] = value.strip()
    for key in values:
        if key not in CLASS_KEYS:
            raise ConfigurationError(
                f"class {name!r}: unknown key {key!r}; expected one of {', '.join(list(CLASS_KEYS)[1:])}"
            )
    found = {}
    for key, entry in CLASS_KEYS.items():
        try:
            found[key] = entry.rule.parse(values[key]) if key in values else entry.default
        except (ValueError, OverflowError):
            problem = f"{key} is {values[key]!r}; expected {entry.rule.accepted}"
            raise ConfigurationError(f"class {name!r}: {problem}") from None
    return _class(found)


def _class(values: dict[str, Any]) -> WorkClass:
    ttft: TtftTarget | None = values["ttft"]
    slo = SloClass(
        tier=values["tier"],
        ttft=None if ttft is None else ttft.seconds,
        ttft_tokens_per_second=(ttft.tokens_per_second or None) if ttft else None,
        tpot=values["tpot"],
        e2e=values["e2e"],
        may_shed=values["may_shed"],
    )
    return WorkClass(values["name"], values["share"], values["pool"], values["budget"], slo)


def checked_classes(classes: Sequence[WorkClass], where: str) -> tuple[WorkClass, ...]:
    """Return `classes`. Raises ConfigurationError where two have one name, or none has a share."""
    names = [found.name for found in classes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{where}: the class {name!r} is there twice; expected a name for each")
    if not any(found.share > 0 for found in classes):
        raise ConfigurationError(f"{where}: all shares are 0; expected one above 0")
    return tuple(classes)
