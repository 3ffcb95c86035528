"""What a gateway without keys answers: requests of this machine, and not those of web pages that it happens to show."""

from __future__ import annotations

from typing import Final

from sage_gateway.errors import HttpRefused
from sage_gateway.settings import is_loopback

__all__ = ["LoopbackDoor"]

_MAX_KNOWN: Final = 64


class LoopbackDoor:
    """Lets requests in whose Host, and Origin where there is one, are loopback names. Remembers those that are.

    Another Host is how a web page in the user's browser would reach in under a name of its own (DNS rebinding);
    another Origin, how it would let the browser send a request whose answer it need not see (request forgery).
    """

    def __init__(self, origins: frozenset[bytes]) -> None:
        self._origins = origins
        self._known_hosts: set[bytes] = set()
        self._known_origins: set[bytes] = set()

    def check(self, host: bytes, origin: bytes | None) -> None:
        """Return for a request of this machine. Raises HttpRefused 403 for all others."""
        if host not in self._known_hosts:
            if not is_loopback(_host_name(host)):
                shown = host[:120].decode("latin-1")
                raise _refused(
                    "host_not_allowed",
                    f"host {shown!r} is not a loopback name; a gateway without keys answers only those",
                )
            _remember(self._known_hosts, host)
        if origin is not None and origin not in self._known_origins:
            _, separator, address = origin.partition(b"://")
            is_allowed = origin in self._origins or (bool(separator) and is_loopback(_host_name(address)))
            if not is_allowed:
                shown = origin[:120].decode("latin-1")
                raise _refused(
                    "origin_not_allowed",
                    f"origin {shown!r} is not on this machine; a gateway without keys answers its pages only "
                    "where [gateway] cors_origins names it",
                )
            _remember(self._known_origins, origin)


def _remember(known: set[bytes], value: bytes) -> None:
    if len(known) < _MAX_KNOWN:
        known.add(value)


def _host_name(host: bytes) -> str:
    text = host.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _refused(code: str, message: str) -> HttpRefused:
    return HttpRefused(403, "permission_error", code, message)
