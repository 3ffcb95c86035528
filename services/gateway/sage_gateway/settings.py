"""`[gateway]` of the settings file."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from sage_core import ByteSize, Duration, Paths, ServiceSettings
from sage_core.ports import GATEWAY_PORT
from sage_core.settings import Section

__all__ = ["GatewaySection", "GatewaySettings", "is_loopback"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


def is_loopback(host: str) -> bool:
    """True where only this machine can reach `host`. Names other than localhost are taken as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        host = host.lower().removesuffix(".")  # names have no case, and a dot at the end is their root
        return host == "localhost" or host.endswith(".localhost")


class GatewaySection(Section):
    """The HTTP edge: where it listens, who may call, and every limit on what a client can cost."""

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback needs keys.")
    port: int = Field(GATEWAY_PORT, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    keys_file: Path | None = Field(
        None,
        description="API keys, written by `sage keys`; unset: keys.toml in the configuration folder. No such file: "
        "open, on loopback only.",
    )
    quota_timeout: Duration = Field(
        2.0,
        gt=0,
        description="How long a request of a key with a quota may wait to be counted; then it is refused with 503.",
    )
    quota_output_tokens: int = Field(
        1024, ge=1, description="Tokens reserved of a key's quota for an answer that names no max_tokens."
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description='Origins of web pages that may read answers, e.g. ["https://app.example"]; empty: none.',
    )
    default_budget: Duration = Field(120.0, gt=0, description="Time a request may take, queueing included.")
    max_budget: Duration = Field(3600.0, gt=0, description="Most that x-sage-budget-ms may ask for.")
    max_body: ByteSize = Field(8 * 2**20, ge=1024, description="Largest request body.")
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
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the port, each with limits of its own; one per core.",
    )
    share_port: bool = Field(
        False,
        description="Other gateways of this user on this host may listen on the same port (SO_REUSEPORT).",
    )
    remember_models: Duration = Field(
        60.0,
        description="How long a model whose workers all vanished is still accepted, to be held or refused later.",
    )

    responses_ttl: Duration = Field(
        30 * 86_400.0,
        ge=0,
        description="How long a response of /v1/responses can be found; 0: none is stored.",
    )
    max_stored_response: ByteSize = Field(
        2**20,
        ge=1024,
        le=4 * 2**20,  # JetStream shows a stored value as base64 in one message, of 8 MiB at most
        description="Largest response that is stored, with its input; a larger one is answered and says store: false.",
    )
    responses_bytes: ByteSize = Field(
        2**30,
        ge=2**20,
        description="Room for all stored responses of all gateways; once it is full, the oldest go.",
    )

    @property
    def keys_path(self) -> Path:
        """Where the keys file is, or would be."""
        return self.keys_file or Paths.for_instance().config / "keys.toml"

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise ValueError(
                    f"{origin!r} is no origin: expected scheme://host[:port], lower case, no path, or '*'"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_budget > self.max_budget:
            raise ValueError("default_budget is larger than max_budget")
        return self


class GatewaySettings(ServiceSettings):
    """All settings of a gateway process."""

    gateway: GatewaySection = Field(default_factory=lambda: GatewaySection())
