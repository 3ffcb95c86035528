"""Who may call: bearer keys, known here only as hashes. Without keys the gateway answers loopback names alone."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from sage_gateway.errors import HttpRefused
from sage_gateway.settings import is_loopback

__all__ = ["DEFAULT_TENANT", "Access"]

DEFAULT_TENANT: Final = "default"

_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="sage"'),)


class Access:
    """Decides from a request's headers whose request it is."""

    def __init__(self, key_hashes: Sequence[str]) -> None:
        self._hashes = tuple(entry.encode() for entry in key_hashes)

    def tenant(self, headers: Mapping[bytes, bytes]) -> str:
        """Return the tenant of the caller: a name derived from its key, or `default` where there are no keys.

        Raises HttpRefused: 401 without a known key; 403 where there are no keys and the Host is not a loopback
        name, which is how a web page in the user's browser would reach in (DNS rebinding).
        """
        if not self._hashes:
            host = headers.get(b"host", b"").decode("latin-1")
            if not is_loopback(_host_name(host)):
                raise HttpRefused(
                    403,
                    "permission_error",
                    "host_not_allowed",
                    f"host {host[:120]!r} is not a loopback name; a gateway without api_keys answers only those",
                )
            return DEFAULT_TENANT
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            raise _unauthorized("an API key is needed: send 'Authorization: Bearer KEY'")
        given = hashlib.sha256(key).hexdigest().encode()
        # All entries are compared, each in constant time, so that timing tells nothing about any of them.
        matches = [hmac.compare_digest(given, entry) for entry in self._hashes]
        if not any(matches):
            raise _unauthorized("the API key is not known here")
        return f"key-{given[:12].decode()}"


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _unauthorized(message: str) -> HttpRefused:
    return HttpRefused(401, "authentication_error", "invalid_api_key", message, headers=_CHALLENGE)
