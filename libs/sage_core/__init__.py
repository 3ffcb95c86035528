"""What every layer shares: errors, ids, clock, settings, paths, ports. No IO beyond reading settings files."""

from sage_core.budget import Budget
from sage_core.clock import Clock, FakeClock, SystemClock
from sage_core.errors import (
    ActorRestarted,
    BadRequest,
    BusError,
    BusUnavailable,
    Cancelled,
    ConfigurationError,
    Conflict,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    Internal,
    LimitExceeded,
    NotFound,
    Overloaded,
    SageError,
    Unavailable,
    WorkerLost,
    error_from_code,
)
from sage_core.ids import new_id
from sage_core.paths import Paths
from sage_core.settings import BusSettings, ServiceSettings, TelemetrySettings, load_settings
from sage_core.units import ByteSize, Duration

__all__ = [
    "ActorRestarted",
    "BadRequest",
    "Budget",
    "BusError",
    "BusSettings",
    "BusUnavailable",
    "ByteSize",
    "Cancelled",
    "Clock",
    "ConfigurationError",
    "Conflict",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "Duration",
    "EngineError",
    "FakeClock",
    "Internal",
    "LimitExceeded",
    "NotFound",
    "Overloaded",
    "Paths",
    "SageError",
    "ServiceSettings",
    "SystemClock",
    "TelemetrySettings",
    "Unavailable",
    "WorkerLost",
    "error_from_code",
    "load_settings",
    "new_id",
]
