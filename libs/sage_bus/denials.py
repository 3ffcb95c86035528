"""What the server denied us, and what we refused: counted, and told without flooding the log."""

from __future__ import annotations

import re
from typing import Final

import structlog

from sage_core import BusError

__all__ = ["RIGHTS_REMEDY", "Denials", "find_denial"]

log = structlog.get_logger("sage_bus")

RIGHTS_REMEDY: Final = (
    "render the configuration of nats-server again with `sage nats config --users` of this version and reload it, or "
    "correct bus.nkey_seed_file where it is another role's"
)
_PROVISION_REMEDY: Final = (
    "run `sage nats provision` and set bus.is_provisioned = true: "
    "with rights of its own, a process creates nothing"
)
_JETSTREAM = "$js.api."
_MAX_KNOWN = 1000
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')


def find_denial(error: str) -> tuple[str, str] | None:
    """Return the right (`publish` or `subscription`) and the subject, in lower case, that an error denies."""
    found = _DENIED.search(error)
    return (found.group(1), found.group(2)) if found is not None else None


class Denials:
    """Of one connection, whose user has `role`; empty where it is not known.

    `may_create`: it was told to create streams where they are missing, although no role but the provisioner may.
    """

    def __init__(self, role: str, *, may_create: bool = False) -> None:
        self.num_denied = 0
        self.num_from_streams = 0
        self._role = role
        self._may_create = may_create
        self._known: set[str] = set()

    def denied(self, right: str, subject: str) -> BusError:
        """Count and tell a denial; return it as the error of whoever asked for it."""
        self.num_denied += 1
        what = f"{right} {subject}"
        is_creating = self._may_create and subject.startswith(_JETSTREAM)
        remedy = _PROVISION_REMEDY if is_creating else RIGHTS_REMEDY
        # Each subject once, and then ever more seldom: who is denied may try a thousand times a second.
        if (len(self._known) < _MAX_KNOWN and what not in self._known) or self.num_denied.bit_count() == 1:
            self._known.add(what)
            log.error(
                "bus_permission_denied",
                role=self._role,
                right=right,
                subject=subject,
                num_errors=self.num_denied,
                remedy=remedy,
            )
        user = f"role {self._role}" if self._role else "this user"
        verb = "publish on" if right == "publish" else "subscribe to"
        return BusError(f"{user} may not {verb} {subject}; {remedy}")

    def refused_stream(self, subject: bytes) -> None:
        """Count and tell a message that came out of a stream where only peers may speak."""
        self.num_from_streams += 1
        if self.num_from_streams.bit_count() == 1:
            log.error(
                "bus_stream_message_refused",
                subject=subject.decode("ascii", "replace"),
                num_refused=self.num_from_streams,
            )
