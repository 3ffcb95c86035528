"""Nkeys: the key pairs by which users of the bus are known. A seed is a secret, a public key is not.

https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth
"""

from __future__ import annotations

import re
import secrets

import nkeys

from sage_core import ConfigurationError

__all__ = ["is_public_key", "new_seed", "public_key"]

_SEED_BYTES = 32
_PUBLIC = re.compile(r"U[A-Z2-7]{55}")


def new_seed() -> str:
    """Return the seed (`SU…`) of a new user."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(_SEED_BYTES), nkeys.PREFIX_BYTE_USER)
    return seed.decode("ascii")


def public_key(seed: str) -> str:
    """Return the public key (`U…`) that belongs to `seed`. Raises ConfigurationError for what is no user's seed."""
    text = seed.strip()
    try:
        prefix, raw = nkeys.decode_seed(text.encode("ascii"))
        # The package does not look at the checksum: a mistyped seed would be another key.
        is_whole = nkeys.encode_seed(bytes(raw), prefix) == text.encode("ascii")
        key: str = nkeys.from_seed(bytearray(text.encode("ascii"))).public_key.decode("ascii")
    except (nkeys.NkeysError, ValueError):  # ValueError: not ASCII, not base32
        is_whole = False
    if not is_whole or prefix != nkeys.PREFIX_BYTE_USER:
        raise ConfigurationError("not the nkey seed of a user; expected one line SU…")
    return key


def is_public_key(text: str) -> bool:
    """Tell whether `text` has the form of a user's public key."""
    return _PUBLIC.fullmatch(text) is not None
