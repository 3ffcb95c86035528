from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_core import ConfigurationError
from sage_gateway.access.keys_file import KeyRecord, Secret, parse_keys, read_keys, render_keys

PATH = Path("/etc/sage/keys.toml")
HASH = "ab" * 32
GOOD = f"""\
# a comment
[keys.website]
secrets = [{{ sha256 = "{HASH}", expires = 2026-12-01T00:00:00Z }}]
tenant = "acme"
models = ["tiny", "pipeline/*"]
classes = ["batch"]
rpm = 600
tpm = 100000
concurrency = 8

[keys.plain]
secrets = [{{ sha256 = "{"cd" * 32}" }}, {{ sha256 = "{"ef" * 32}" }}]
"""

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)
moments = st.none() | st.integers(0, 4_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
secrets = st.builds(
    Secret, sha256=st.binary(min_size=32, max_size=32).map(bytes.hex), created=moments, expires=moments
)
positive = st.none() | st.integers(1, 10**9)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
records = st.builds(
    KeyRecord,
    secrets=st.lists(secrets, min_size=1, max_size=3, unique_by=lambda secret: secret.sha256).map(tuple),
    tenant=st.none() | st.sampled_from(["acme", "a/b@c.d"]),
    models=st.none() | st.lists(text, max_size=3).map(tuple),
    classes=st.none() | st.just(("batch", "normal")),
    rpm=positive,
    tpm=positive,
    concurrency=positive,
    disabled=st.booleans(),
)


def test_a_file_is_read() -> None:
    keys = parse_keys(GOOD.encode(), PATH)
    assert list(keys) == ["website", "plain"]
    assert keys["website"] == KeyRecord(
        secrets=(Secret(HASH, expires=datetime(2026, 12, 1, tzinfo=UTC)),),
        tenant="acme",
        models=("tiny", "pipeline/*"),
        classes=("batch",),
        rpm=600,
        tpm=100_000,
        concurrency=8,
    )
    assert len(keys["plain"].secrets) == 2
    assert parse_keys(b"", PATH) == {}


@given(st.dictionaries(names, records, max_size=4))
def test_what_is_written_is_read_back(keys: dict[str, KeyRecord]) -> None:
    hashes = [secret.sha256 for record in keys.values() for secret in record.secrets]
    if len(set(hashes)) == len(hashes):
        assert parse_keys(render_keys(keys).encode(), PATH) == keys


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("rpm = 600", "rpm = 0", 7, "website.rpm"),
        ("rpm = 600", 'rpm = "600"', 7, "website.rpm: Expected `int | null`, got `str`"),
        ("rpm = 600", "rmp = 600", 2, "unknown field `rmp`"),
        ("rpm = 600", "rpm = = 600", 7, "not TOML"),
        ('["batch"]', '["fast"]', 6, "expected some of interactive, normal, batch"),
        ('["batch"]', "[]", 6, "expected some of"),
        (HASH, "secret-key-itself", 3, "expected 64 lower-case hex digits"),
        (HASH, "cd" * 32, 12, "is also listed for website"),
        ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00", 3, "needs a zone"),
        ("2026-12-01T00:00:00Z", '"soon"', 3, "website.secrets[0].expires"),
        ('tenant = "acme"', 'tenant = "a b"', 4, "website.tenant"),
        ("[keys.website]", '[keys."web site"]', 2, "the name of a key is"),
        ("[keys.plain]", "[key.plain]", 11, "expected tables [keys.NAME]"),
        ("[keys.plain]", "[keys.website]", 11, "not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_without_its_value(
    old: str, new: str, line: int, told: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_keys(GOOD.replace(old, new, 1).encode(), PATH)
    message = caught.value.message
    assert message.startswith(f"keys file {PATH}")
    assert told in message
    assert f"line {line}" in message
    assert "secret-key-itself" not in message
    assert "soon" not in message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(GOOD)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    assert len(read_keys(path)) == 2


def test_what_is_no_file_and_what_is_not_there_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_keys(tmp_path / "keys.toml")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_keys(tmp_path)
    with pytest.raises(ConfigurationError, match="is not a file"):
        read_keys(tmp_path / "pipe")
