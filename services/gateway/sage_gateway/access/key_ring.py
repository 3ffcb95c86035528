"""The keys that are accepted now: looked up without telling anything by the time it takes, read again when they change.

A key is 256 random bits, so one round of SHA-256 is the right hash: nobody can guess what it hashes from a stolen
file, with any number of tries. A slow hash (bcrypt, Argon2) makes up for passwords that people choose; here it would
only let strangers spend our time with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sage_core import ConfigurationError
from sage_gateway.access.caller import SLO_CLASSES, Caller, ModelNames
from sage_gateway.access.keys_file import KeyRecord, KeysFile, read_keys
from sage_gateway.access.quota import Quota
from sage_gateway.errors import HttpRefused
from sage_telemetry import get_logger

__all__ = ["KeyRing"]

LOOK_SECONDS: Final = 1.0
"""How often, at the most, the file is looked at: what is revoked is refused a second later."""
_MAX_KNOWN: Final = 4096
_CHALLENGE: Final = ((b"www-authenticate", b'Bearer realm="sage"'),)

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A secret that was presented and found good. `expires_at`: Unix seconds."""

    caller: Caller
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    expires_at: float
    is_disabled: bool
    caller: Caller


class KeyRing:
    """Finds the caller of a request by its Authorization header.

    A header that was accepted before is found in a table by its bytes. Python compares them only where their SipHash
    under this process's random key is equal, so the time that takes tells nothing about how much of a wrong key is
    right. All others are hashed with SHA-256 and compared with every entry, each in constant time.
    """

    def __init__(self, path: Path, *, wall: Callable[[], float] = time.time) -> None:
        self.path = path
        self._wall = wall
        self._entries: tuple[_Entry, ...] = ()
        self._known: dict[bytes, _Accepted] = {}
        self._seen: tuple[int, ...] | None = None
        self._is_loaded = False

    @property
    def is_loaded(self) -> bool:
        """True once a keys file was read: from then on a key is needed, even where the file is gone again."""
        return self._is_loaded

    def load(self) -> None:
        """Read the file. Raises FileNotFoundError, and ConfigurationError saying what is wrong with it."""
        self._seen = self._signature()
        self._take(read_keys(self.path))

    def look(self) -> None:
        """Read the file again if it changed. One that is wrong or gone is logged, and the last good keys stay."""
        signature = self._signature()
        if signature != self._seen:
            self._seen = signature
            self._reload()

    def reload(self) -> None:
        """Read the file again, changed or not. One that is wrong or gone is logged, and the last good keys stay."""
        self._seen = None
        self.look()

    def find(self, authorization: bytes) -> Caller:
        """Return whose key it is. Raises HttpRefused 401."""
        accepted = self._known.get(authorization)
        if accepted is not None and self._wall() < accepted.expires_at:
            return accepted.caller
        return self._find_unknown(authorization)

    def _find_unknown(self, authorization: bytes) -> Caller:
        scheme, _, key = authorization.partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key:
            raise _unauthorized("an API key is needed: send 'Authorization: Bearer KEY'")
        given = hashlib.sha256(key).digest()
        found: _Entry | None = None
        for entry in self._entries:
            # No early end: the place of an entry in the file shows in no time either.
            if hmac.compare_digest(given, entry.digest):
                found = entry
        if found is None:
            raise _unauthorized("the API key is not known here")
        if found.is_disabled:
            raise _unauthorized("the API key was revoked")
        if self._wall() >= found.expires_at:
            raise _unauthorized("the API key has expired")
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()  # one key can be spelled in many ways: spaces before it, bEaReR
        self._known[authorization] = _Accepted(found.caller, found.expires_at)
        return found.caller

    def _reload(self) -> None:
        try:
            keys = read_keys(self.path)
        except FileNotFoundError:
            if self._is_loaded:
                log.error("keys_file_lost", path=str(self.path), kept=len(self._entries))
        except ConfigurationError as error:
            log.error("keys_file_refused", error=error.message, kept=len(self._entries))
        else:
            self._take(keys)
            log.info("keys_loaded", path=str(self.path), num_keys=len(keys))

    def _take(self, keys: KeysFile) -> None:
        self._entries = tuple(
            _Entry(
                bytes.fromhex(secret.sha256),
                secret.expires.timestamp() if secret.expires is not None else float("inf"),
                record.disabled,
                caller,
            )
            for name, record in keys.items()
            for caller in (_caller(name, record),)
            for secret in record.secrets
        )
        self._known.clear()
        self._is_loaded = True

    def _signature(self) -> tuple[int, ...] | None:
        """What tells one state of the file from another; None: it cannot be seen, and reading it tells why."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        # Also the change of owner or mode, which moves ctime alone.
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


def _caller(name: str, record: KeyRecord) -> Caller:
    limits = (record.rpm, record.tpm, record.concurrency)
    return Caller(
        name=name,
        tenant=record.tenant or name,
        allowed_models=None if record.models is None else ModelNames(record.models),
        slo_classes=record.classes or SLO_CLASSES,
        quota=None if limits == (None, None, None) else Quota(*limits),
    )


def _unauthorized(message: str) -> HttpRefused:
    return HttpRefused(401, "authentication_error", "invalid_api_key", message, headers=_CHALLENGE)
