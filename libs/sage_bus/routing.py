"""Which subscriptions a subject reaches: exact names by lookup, wildcards by token."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["RoutingTable", "matches"]

T = TypeVar("T")


def matches(pattern: str, subject: str) -> bool:
    """Tell whether `pattern` (`*` is one token, a last `>` one or more) covers `subject`."""
    wanted = pattern.split(".")
    found = subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(found) <= len(wanted):
            return False
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(
        want in ("*", have) for want, have in zip(wanted, found, strict=True)
    )


class RoutingTable(Generic[T]):
    """Subscriptions by pattern, in the order they were added."""

    def __init__(self) -> None:
        self._exact: dict[str, list[T]] = {}
        self._wildcards: list[tuple[str, T]] = []

    def add(self, pattern: str, item: T) -> None:
        """Add `item` under `pattern`."""
        if "*" in pattern or ">" in pattern:
            self._wildcards.append((pattern, item))
        else:
            self._exact.setdefault(pattern, []).append(item)

    def remove(self, pattern: str, item: T) -> None:
        """Remove `item`; an absent one is no error."""
        if "*" in pattern or ">" in pattern:
            self._wildcards = [entry for entry in self._wildcards if entry != (pattern, item)]
            return
        items = self._exact.get(pattern, [])
        if item in items:
            items.remove(item)
            if not items:
                del self._exact[pattern]

    def find(self, subject: str) -> list[T]:
        """Return every item whose pattern covers `subject`."""
        found = list(self._exact.get(subject, ()))
        found.extend(item for pattern, item in self._wildcards if matches(pattern, subject))
        return found

    def items(self) -> list[T]:
        """Return every item."""
        found = [item for items in self._exact.values() for item in items]
        found.extend(item for _, item in self._wildcards)
        return found
