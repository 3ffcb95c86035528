"""`[gateway]` of the settings file."""

from __future__ import annotations

import ipaddress
import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from sage_core import ByteSize, Duration, ServiceSettings
from sage_core.ports import GATEWAY_PORT
from sage_core.settings import Section

__all__ = ["GatewaySection", "GatewaySettings", "is_loopback"]

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host`. Names other than localhost are taken as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class GatewaySection(Section):
    """The HTTP edge: where it listens, who may call, and every limit on what a client can cost."""

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs api_keys.")
    port: int = Field(GATEWAY_PORT, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    api_keys: tuple[str, ...] = Field(
        (), description="SHA-256 (hex) of each accepted key; empty: open, on loopback only."
    )
    default_budget: Duration = Field(120.0, gt=0, description="Time a request may take, queueing included.")
    max_budget: Duration = Field(3600.0, gt=0, description="Most that x-sage-budget-ms may ask for.")
    max_body: ByteSize = Field(4 * 2**20, ge=1024, description="Largest request body.")
    max_header_bytes: ByteSize = Field(32 * 2**10, ge=1024, description="Largest request line plus headers.")
    max_headers: int = Field(100, ge=8, description="Most headers of one request.")
    header_timeout: Duration = Field(
        10.0, gt=0, description="How long a client may take to send its headers."
    )
    body_timeout: Duration = Field(30.0, gt=0, description="How long a client may take to send its body.")
    idle_timeout: Duration = Field(75.0, gt=0, description="How long an unused connection is kept.")
    keep_alive_interval: Duration = Field(
        10.0, gt=0, description="A silent stream sends a comment this often, also before its first token."
    )
    stall_timeout: Duration = Field(
        30.0,
        gt=0,
        description="A client that takes no bytes for this long is cut off and its request cancelled.",
    )
    max_backlog: ByteSize = Field(
        4 * 2**20, ge=2**16, description="Output that may wait for one slow client before it is cut off."
    )
    max_in_flight: int = Field(2048, ge=1, description="Requests served at once; more are refused with 429.")
    max_connections: int = Field(8192, ge=1, description="Open connections; more are refused with 503.")
    remember_models: Duration = Field(
        60.0,
        description="How long a model whose workers all vanished is still accepted, to be held or refused later.",
    )

    @field_validator("api_keys")
    @classmethod
    def _hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(_SHA256_HEX.fullmatch(entry) is None for entry in value):
            # The entry itself may be a key written by mistake, so it is not repeated here.
            raise ValueError(
                "every entry is 64 lower-case hex digits: the output of `printf %s KEY | sha256sum`, not the key"
            )
        return value

    @model_validator(mode="after")
    def _closed_unless_local(self) -> Self:
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines; set api_keys or listen on 127.0.0.1"
            )
        if self.default_budget > self.max_budget:
            raise ValueError("default_budget is larger than max_budget")
        return self


class GatewaySettings(ServiceSettings):
    """All settings of a gateway process."""

    gateway: GatewaySection = Field(default_factory=lambda: GatewaySection())
