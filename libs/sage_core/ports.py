"""Default ports, the only place they are written."""

from __future__ import annotations

from typing import Final

__all__ = ["GATEWAY_PORT", "NATS_PORT", "OTLP_GRPC_PORT", "OTLP_HTTP_PORT"]

GATEWAY_PORT: Final = 8080
NATS_PORT: Final = 4222
OTLP_GRPC_PORT: Final = 4317
OTLP_HTTP_PORT: Final = 4318
