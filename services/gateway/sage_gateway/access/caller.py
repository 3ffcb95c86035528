"""Whose request it is, and what its key lets it ask for."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Final

from sage_gateway.access.quota import Quota
from sage_gateway.errors import HttpRefused

__all__ = ["DEFAULT_TENANT", "SLO_CLASSES", "Caller", "ModelNames"]

DEFAULT_TENANT: Final = "default"
SLO_CLASSES: Final = ("interactive", "normal", "batch")


class ModelNames(Container[str]):
    """Names that a key may ask for, some with `*`, `?` and `[…]`; only `in` is offered, as globs have no end."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._names = frozenset(patterns)
        globs = [translate(pattern) for pattern in patterns if any(mark in pattern for mark in "*?[")]
        self._globs = re.compile("|".join(globs)) if globs else None

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name in self._names or (self._globs is not None and self._globs.match(name) is not None)


@dataclass(frozen=True, slots=True)
class Caller:
    """One API key, or everybody on this machine where there are no keys. `name` and `tenant` may be logged.

    `allowed_models`: None means all. `slo_classes`: what it may ask for, its own default first. A caller without
    `quota` is never asked to wait.
    """

    name: str = ""
    tenant: str = DEFAULT_TENANT
    allowed_models: Container[str] | None = None
    slo_classes: tuple[str, ...] = SLO_CLASSES
    quota: Quota | None = None

    def slo_class(self, asked: str | None) -> str:
        """Return the class of a request that asks for `asked`, or for none. Raises HttpRefused 403 for one beyond."""
        if asked is None:
            return self.slo_classes[0]
        if asked not in self.slo_classes:
            raise HttpRefused(
                403,
                "permission_error",
                "slo_class_not_allowed",
                f"this key may ask for {' or '.join(self.slo_classes)}, not for {asked}",
            )
        return asked
