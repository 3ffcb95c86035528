from __future__ import annotations

import hashlib

import pytest

from sage_core import ConfigurationError, load_settings
from sage_gateway import GatewaySettings

KEY_HASH = hashlib.sha256(b"key").hexdigest()


def load(**environ: str) -> GatewaySettings:
    return load_settings(
        GatewaySettings, environ={f"SAGE_GATEWAY__{k.upper()}": v for k, v in environ.items()}
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert load(host=host).gateway.api_keys == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_any_other_host_needs_keys(host: str) -> None:
    with pytest.raises(ConfigurationError, match="api_keys"):
        load(host=host)
    assert load(host=host, api_keys=f'["{KEY_HASH}"]').gateway.host == host


def test_a_key_in_place_of_its_hash_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="sha256sum"):
        load(api_keys='["my-secret-key"]')


def test_the_default_budget_is_within_the_largest() -> None:
    with pytest.raises(ConfigurationError, match="max_budget"):
        load(default_budget="2h")


def test_units_are_read() -> None:
    section = load(max_body="1MiB", keep_alive_interval="250ms").gateway
    assert (section.max_body, section.keep_alive_interval) == (2**20, 0.25)
