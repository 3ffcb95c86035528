"""Nkeys are those that the server knows, and a mistyped seed is refused instead of being another key."""

from __future__ import annotations

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_bus.nkey import is_public_key, new_seed, public_key
from sage_core import ConfigurationError

SEED: str = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER).decode()


def test_a_new_seed_is_a_users_and_never_the_same():
    seeds = [new_seed() for _ in range(20)]
    assert len(set(seeds)) == 20
    for seed in seeds:
        assert seed.startswith("SU")
        assert len(seed) == 58
        assert is_public_key(public_key(seed))


def test_what_a_seed_signs_its_public_key_verifies():
    seed = new_seed()
    pair = nkeys.from_seed(bytearray(seed.encode()))
    assert pair.public_key.decode() == public_key(seed)
    assert pair.verify(b"nonce", pair.sign(b"nonce"))


def test_line_ends_around_a_seed_do_not_matter():
    seed = new_seed()
    assert public_key(f"{seed}\n") == public_key(f" {seed}\r\n") == public_key(seed)


@given(st.integers(2, 57), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_one_wrong_character_is_noticed(position: int, character: str):
    wrong = SEED[:position] + character + SEED[position + 1 :]
    if character == SEED[position]:
        assert is_public_key(public_key(wrong))
        return
    with pytest.raises(ConfigurationError):
        public_key(wrong)


@given(st.text(max_size=60))
def test_what_is_no_seed_is_refused(text: str):
    with pytest.raises(ConfigurationError, match="nkey seed"):
        public_key(text)


@pytest.mark.parametrize(
    "prefix", [nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_SERVER, nkeys.PREFIX_BYTE_OPERATOR]
)
def test_the_seed_of_something_else_is_refused(prefix: int):
    with pytest.raises(ConfigurationError, match="of a user"):
        public_key(nkeys.encode_seed(bytes(32), prefix).decode())


@pytest.mark.parametrize("text", ["", "U", "U" + "a" * 55, "A" * 56, "U" + "A" * 56, "U" + "1" * 55])
def test_the_form_of_a_public_key_is_checked(text: str):
    assert not is_public_key(text)
