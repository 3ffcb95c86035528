"""Who is let in: keys of a file that changes under a running gateway, and this machine alone where there is none."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sage_bus import MemoryBus
from sage_core import ConfigurationError, FakeClock
from sage_gateway import GatewaySection
from sage_gateway.access import Caller, Gate, Granted, Quota
from sage_gateway.access.keys_file import KeyRecord, Secret, render_keys
from sage_gateway.errors import HttpRefused
from sage_wire.messages import ChatMessage, ChatPrompt, Embed, Generate, Sampling

WALL = datetime(2026, 11, 22, tzinfo=UTC).timestamp()


def secret(key: str, *, expires_in: float | None = None) -> Secret:
    expires = None if expires_in is None else datetime.fromtimestamp(WALL + expires_in, UTC)
    return Secret(hashlib.sha256(key.encode()).hexdigest(), expires=expires)


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode(), b"host": b"sage.example"}


class House:
    """A gate on a keys file, a clock, and a wall clock that goes with it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.toml"
        self.clock = FakeClock(0.0)
        self._gate: Gate | None = None
        self._num_written = 0

    def write(self, text: str | None = None, **keys: KeyRecord) -> None:
        self.path.write_text(render_keys(keys) if text is None else text)
        self.path.chmod(0o600)
        # Two changes within one tick of the filesystem's clock are told apart by nothing else of the same size.
        self._num_written += 1
        os.utime(self.path, (self._num_written, self._num_written))

    def build(self, **settings: Any) -> Gate:
        section = GatewaySection(**({"keys_file": self.path} | settings))
        return Gate(section, clock=self.clock, bus=MemoryBus(), wall=lambda: WALL + self.clock.now())

    @property
    def gate(self) -> Gate:
        if self._gate is None:
            self._gate = self.build()
        return self._gate

    def caller(self, key: str) -> Caller:
        return self.gate.identify(bearer(key))

    def refusal(self, headers: Mapping[bytes, bytes] | str) -> tuple[int, str]:
        with pytest.raises(HttpRefused) as caught:
            self.gate.identify(bearer(headers) if isinstance(headers, str) else headers)
        error = caught.value.http_error
        if error.status == 401:
            assert (b"www-authenticate", b'Bearer realm="sage"') in error.headers
        return error.status, error.message


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def open_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """No keys file where it is looked for by default."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sage").mkdir()
    made = House(tmp_path / "sage")
    made._gate = made.build(keys_file=None)
    return made


def test_a_key_names_its_caller_and_its_rights(house: House) -> None:
    house.write(
        website=KeyRecord((secret("one"),), tenant="acme", models=("tiny", "pipeline/*"), classes=("batch",)),
        plain=KeyRecord((secret("two"),), rpm=5, tpm=6, concurrency=7),
    )
    website, plain = house.caller("one"), house.caller("two")
    assert (website.name, website.tenant, website.quota) == ("website", "acme", None)
    assert website.allowed_models is not None
    assert [name in website.allowed_models for name in ("tiny", "tiny2", "pipeline/rag", "auto")] == [
        True, False, True, False,
    ]  # fmt: skip
    assert (plain.tenant, plain.allowed_models, plain.quota) == ("plain", None, Quota(5, 6, 7))


@pytest.mark.parametrize(
    "header",
    [b"", b"one", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic one", b"Bearer ONE", b"Bearer one x"],
)
def test_anything_but_a_known_key_is_401(house: House, header: bytes) -> None:
    house.write(website=KeyRecord((secret("one"),)))
    assert house.refusal({b"authorization": header, b"host": b"127.0.0.1"})[0] == 401
    assert house.caller("one").name == "website"
    assert house.refusal({b"authorization": header, b"host": b"127.0.0.1"})[0] == 401


@pytest.mark.parametrize("header", [b"bearer one", b"BEARER  one", b"Bearer one "])
def test_the_scheme_is_read_as_http_says(house: House, header: bytes) -> None:
    house.write(website=KeyRecord((secret("one"),)))
    assert house.gate.identify({b"authorization": header}).name == "website"


def test_two_secrets_of_one_key_are_good_at_once_and_one_expires(house: House) -> None:
    house.write(website=KeyRecord((secret("old", expires_in=100), secret("new")), rpm=5))
    assert house.caller("old") == house.caller("new")
    house.clock.advance(99)
    assert house.caller("old").name == "website"
    house.clock.advance(1)
    assert house.refusal("old") == (401, "the API key has expired")
    assert house.caller("new").name == "website"


def test_a_revoked_key_is_refused_a_second_after_the_file_says_so(house: House) -> None:
    house.write(website=KeyRecord((secret("one"),)), other=KeyRecord((secret("two"),)))
    house.caller("one")
    house.write(website=KeyRecord((secret("one"),), disabled=True), added=KeyRecord((secret("three"),)))
    house.clock.advance(1.0)
    assert house.refusal("one") == (401, "the API key was revoked")
    assert house.refusal("two")[0] == 401
    assert house.caller("three").name == "added"


def test_the_file_is_looked_at_once_a_second_and_at_once_on_reload(house: House) -> None:
    house.write(website=KeyRecord((secret("one"),)))
    house.caller("one")
    house.write(website=KeyRecord((secret("two"),)))
    house.clock.advance(0.9)
    assert house.caller("one").name == "website"
    house.gate.reload()
    assert house.refusal("one")[0] == 401
    assert house.caller("two").name == "website"


@pytest.mark.parametrize(
    "wrong", ["[keys.website]\nrpm = 1\nsecrets = []\n", "[keys", None, "open to others"]
)
def test_a_file_that_becomes_wrong_or_vanishes_keeps_the_last_good_keys_and_is_logged_once(
    house: House, wrong: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    house.write(website=KeyRecord((secret("one"),)))
    house.caller("one")
    if wrong is None:
        house.path.unlink()
    elif wrong == "open to others":
        house.path.chmod(0o644)
    else:
        house.write(wrong)
    for _ in range(3):
        house.clock.advance(1)
        assert house.caller("one").name == "website"
        assert house.refusal("two")[0] == 401
    logged = capsys.readouterr().err
    assert logged.count("keys_file_") == 1
    if wrong == "[keys.website]\nrpm = 1\nsecrets = []\n":
        assert "line 3" in logged
    house.write(website=KeyRecord((secret("two"),)))
    house.clock.advance(1)
    assert house.caller("two").name == "website"


def test_a_file_without_keys_lets_nobody_in(house: House) -> None:
    house.write("")
    assert house.refusal({b"host": b"127.0.0.1"})[0] == 401


@pytest.mark.parametrize(
    "host",
    [b"localhost:8080", b"LOCALHOST:8080", b"localhost.", b"127.0.0.1", b"[::1]:8080", b"app.localhost"],
)
def test_without_a_file_this_machine_is_answered(open_house: House, host: bytes) -> None:
    for _ in range(2):
        caller = open_house.gate.identify({b"host": host})
        assert (caller.name, caller.tenant, caller.quota) == ("", "default", None)


@pytest.mark.parametrize(
    "headers",
    [
        {b"host": b"evil.example"},
        {b"host": b"192.168.0.5:8080"},
        {b"host": b"localhost.evil.example"},
        {},
        {b"host": b"localhost", b"origin": b"https://evil.example"},
        {b"host": b"localhost", b"origin": b"null"},
        {b"host": b"localhost", b"origin": b"http://localhost.evil.example"},
    ],
)
def test_without_a_file_other_names_and_pages_are_refused(
    open_house: House, headers: dict[bytes, bytes]
) -> None:
    open_house.gate.identify({b"host": b"localhost", b"origin": b"http://localhost:3000"})
    for _ in range(2):
        assert open_house.refusal(headers)[0] == 403


def test_a_file_that_appears_closes_the_gateway_and_its_loss_does_not_open_it(open_house: House) -> None:
    open_house.gate.identify({b"host": b"localhost"})
    open_house.write(website=KeyRecord((secret("one"),)))
    open_house.clock.advance(1)
    assert open_house.refusal({b"host": b"localhost"})[0] == 401
    open_house.path.unlink()
    open_house.clock.advance(1)
    assert open_house.refusal({b"host": b"localhost"})[0] == 401
    assert open_house.caller("one").name == "website"


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"cors_origins": ("*",)}])
def test_what_others_can_reach_does_not_start_without_keys(
    open_house: House, settings: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="sage keys create"):
        open_house.build(keys_file=None, **settings)
    open_house.write("")
    open_house.build(keys_file=None, **settings)


def test_a_gateway_does_not_start_with_a_file_that_is_wrong_or_named_but_absent(house: House) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        house.build()
    house.write("keys = 1")
    with pytest.raises(ConfigurationError, match="line 1"):
        house.build()


def test_a_caller_gets_the_classes_of_its_key_alone() -> None:
    caller = Caller(slo_classes=("normal", "batch"))
    assert caller.slo_class(None) == "normal"
    assert caller.slo_class("batch") == "batch"
    with pytest.raises(HttpRefused) as caught:
        caller.slo_class("interactive")
    assert (caught.value.http_error.status, caught.value.http_error.code) == (403, "slo_class_not_allowed")
    assert Caller().slo_class(None) == "interactive"


def test_a_request_reserves_its_prompts_and_its_longest_answers(house: House) -> None:
    house.write("")
    gate = house.build(quota_output_tokens=500)
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content="x" * 400)])
    bounded = Generate(model="tiny", prompt=prompt, sampling=Sampling(max_tokens=50))
    assert gate.reserved_tokens([bounded]) == 104 + 50
    assert gate.reserved_tokens([bounded, Generate(model="tiny", prompt=prompt)]) == 104 + 50 + 104 + 500
    assert gate.reserved_tokens([Embed(model="mini", texts=["x" * 40])]) == 12


async def test_quotas_outlive_a_change_of_the_file(house: House) -> None:
    house.write(website=KeyRecord((secret("one"),), rpm=2))
    gate = house.gate

    async def ask() -> Granted | HttpRefused:
        decided: asyncio.Future[Granted | HttpRefused] = asyncio.get_running_loop().create_future()
        gate.admit(house.caller("one"), 10, decided.set_result)
        return await decided

    first = await ask()
    assert isinstance(first, Granted)
    assert dict(first.headers)[b"x-ratelimit-remaining-requests"] == b"1"
    house.write(website=KeyRecord((secret("one"),), rpm=1))
    house.clock.advance(1)
    refused = await ask()
    assert isinstance(refused, HttpRefused)
    error = refused.http_error
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    head = dict(error.head())
    assert head[b"x-should-retry"] == b"true"
    assert 55 <= int(head[b"retry-after"]) <= 61
    assert head[b"x-ratelimit-limit-requests"] == b"1"
    assert head[b"x-ratelimit-remaining-requests"] == b"0"
    gate.release(first)
    await gate.close()


def test_a_place_that_holds_no_files_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    section = GatewaySection(keys_file=tmp_path / "file" / "keys.toml")
    with pytest.raises(ConfigurationError, match="cannot be read: Not a directory"):
        Gate(section, clock=FakeClock(), bus=MemoryBus())
