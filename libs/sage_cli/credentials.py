"""The files behind the users of the bus: one seed per role for itself alone, the public keys for the server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sage_bus.nkey import new_seed, public_key
from sage_core import ConfigurationError
from sage_wire.roles import Role

__all__ = ["USERS_FILE", "Credential", "make_credentials", "read_users"]

USERS_FILE: Final = "users.json"


@dataclass(frozen=True, slots=True)
class Credential:
    """The seed file of one role; `is_new`: it was made now."""

    role: Role
    file: Path
    public_key: str
    is_new: bool


def make_credentials(folder: Path) -> list[Credential]:
    """Make the seeds that `folder` lacks and write `users.json`. What exists is kept, so that twice is once.

    Raises ConfigurationError for a seed that cannot be read, and for a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = [_credential(folder / f"{role}.nk", role) for role in Role]
        users = {credential.role.value: credential.public_key for credential in found}
        text = msgspec.json.format(msgspec.json.encode(users), indent=2) + b"\n"
        file = folder / USERS_FILE
        if not file.exists() or file.read_bytes() != text:
            file.write_bytes(text)
    except OSError as error:
        raise ConfigurationError(f"{error.filename or folder}: {error.strerror}") from None
    return found


def read_users(file: Path) -> dict[Role, str]:
    """Return the public keys by role. Raises ConfigurationError naming what is wrong with `file`."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f'{file}: {error}; expected {{"gateway": "U…", …}}, as `sage nats credentials` writes it'
        ) from None
    known = frozenset(role.value for role in Role)
    for name in found:
        if name not in known:
            raise ConfigurationError(f"{file}: unknown role {name!r}; expected one of {', '.join(Role)}")
    return {Role(name): key for name, key in found.items()}


def _credential(file: Path, role: Role) -> Credential:
    if file.exists():
        try:
            return Credential(role, file, public_key(file.read_text("utf-8")), is_new=False)
        except (ConfigurationError, UnicodeDecodeError):
            raise ConfigurationError(
                f"{file}: not the nkey seed of a user; remove it to have a new one made"
            ) from None
    seed = new_seed()
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(seed + "\n")
    return Credential(role, file, public_key(seed), is_new=True)
