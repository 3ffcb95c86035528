from __future__ import annotations

import pytest

from sage_core import ConfigurationError, load_settings
from sage_gateway import GatewaySettings


def load(**environ: str) -> GatewaySettings:
    return load_settings(
        GatewaySettings, environ={f"SAGE_GATEWAY__{k.upper()}": v for k, v in environ.items()}
    )


def test_the_default_budget_is_within_the_largest() -> None:
    with pytest.raises(ConfigurationError, match="max_budget"):
        load(default_budget="2h")


def test_units_are_read() -> None:
    section = load(max_body="1MiB", keep_alive_interval="250ms").gateway
    assert (section.max_body, section.keep_alive_interval) == (2**20, 0.25)
