"""Telemetry of one test; global state is put back afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from sage_core import TelemetrySettings
from sage_telemetry import Telemetry, configure


@pytest.fixture
def configured() -> Iterator[Callable[..., Telemetry]]:
    """Configure with the given settings; shut down and forget at the end."""
    made: list[Telemetry] = []
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def make(**settings: Any) -> Telemetry:
        values = {"log_format": "json"} | settings
        made.append(configure("sage-test", "test-1", TelemetrySettings(**values)))
        return made[-1]

    yield make
    for telemetry in made:
        telemetry.shutdown(1.0)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
