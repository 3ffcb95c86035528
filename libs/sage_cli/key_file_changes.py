"""Changes of the gateways' keys file: a new key, another secret for one, the end of one. One writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from sage_cli.exits import fail
from sage_core import ConfigurationError
from sage_gateway.access.keys_file import (
    KeyRecord,
    KeysFile,
    Secret,
    check_name,
    parse_keys,
    read_keys,
    render_keys,
)

__all__ = ["create_key", "key_state", "known_keys", "revoke_key", "rotate_key"]

_KEY_PREFIX: Final = "sk-sage-"
"""Lets scanners of repositories and logs see what they found."""
_KEY_BYTES: Final = 32


def known_keys(path: Path) -> KeysFile:
    """Return the keys of the file, none where there is no file. Raises ConfigurationError for one that is wrong."""
    try:
        return read_keys(path)
    except FileNotFoundError:
        return {}


def create_key(path: Path, name: str, rights: KeyRecord, now: datetime, lifetime: timedelta | None) -> str:
    """Add a key with the rights of `rights`; return its secret, which is stored nowhere. Fails for a taken name."""
    check_name(name)
    key, secret = _new_secret(now, lifetime)
    with _changing(path) as keys:
        if name in keys:
            fail(f"there is a key {name!r} in {path}; run `sage keys rotate {name}` for a new secret of it")
        keys[name] = msgspec.structs.replace(rights, secrets=(secret,))
    return key


def rotate_key(path: Path, name: str, now: datetime, overlap: timedelta) -> str:
    """Give a key another secret, which is returned; those it had are good for `overlap` longer, at the most."""
    key, secret = _new_secret(now, None)
    with _changing(path) as keys:
        record = _found(keys, name, path)
        if record.disabled:
            fail(f"the key {name!r} was revoked; create another one")
        ends = (now + overlap).replace(microsecond=0)
        old = [
            msgspec.structs.replace(each, expires=min(ends, each.expires or ends))
            for each in record.secrets
            if overlap and (each.expires is None or each.expires > now)
        ]
        keys[name] = msgspec.structs.replace(record, secrets=(*old, secret))
    return key


def revoke_key(path: Path, name: str, *, is_forgotten: bool) -> None:
    """End a key. It stays in the file, so that its name is not given out again, unless it is to be forgotten."""
    with _changing(path) as keys:
        record = _found(keys, name, path)
        if is_forgotten:
            del keys[name]
        else:
            keys[name] = msgspec.structs.replace(record, disabled=True)


def key_state(record: KeyRecord, now: datetime) -> str:
    """Return `active`, `revoked` or `expired`."""
    if record.disabled:
        return "revoked"
    is_good = any(secret.expires is None or secret.expires > now for secret in record.secrets)
    return "active" if is_good else "expired"


def _new_secret(now: datetime, lifetime: timedelta | None) -> tuple[str, Secret]:
    key = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    # To the second, as the file holds it.
    expires = None if lifetime is None else (now + lifetime).replace(microsecond=0)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, Secret(digest, created=now.astimezone(UTC).replace(microsecond=0), expires=expires)


def _found(keys: KeysFile, name: str, path: Path) -> KeyRecord:
    if name not in keys:
        fail(f"there is no key {name[:64]!r} in {path}; see `sage keys list`")
    return keys[name]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, KeyRecord]]:
    """Hold the file against other writers, and replace it at the end as a whole: gateways never see half of one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = dict(known_keys(path))
        yield keys
        content = render_keys(keys).encode()
        try:
            parse_keys(content, path)  # what a gateway would refuse is not written
        except ConfigurationError as error:
            # It was right before, so it is about the new key, and about a line that nobody has seen.
            raise ConfigurationError(error.message.partition(": ")[2]) from None
        _replace(path, content)
        os.fsync(folder)
    finally:
        os.close(folder)


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with ExitStack() as undo:
        undo.callback(os.unlink, temporary)
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                owner = path.stat()
                if owner.st_uid != os.geteuid():
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)  # root for a service's user
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        undo.pop_all()
