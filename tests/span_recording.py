"""Telemetry for the time of a test: spans are kept in memory, and the process is put back as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from sage_core import TelemetrySettings
from sage_telemetry import Telemetry, configure

__all__ = ["SAMPLED", "TRACE_ID", "UNSAMPLED", "recording"]

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-2] + "00"


@contextmanager
def recording(**settings: Any) -> Iterator[Telemetry]:
    """Record spans within the block; find them with `telemetry.recent`."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    values = {"log_format": "json", "log_level": "error"} | settings
    telemetry = configure("sage-test", "test-1", TelemetrySettings.model_validate(values))
    try:
        yield telemetry
    finally:
        telemetry.shutdown(1.0)
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(level)
