"""For all tests: no property test is judged by the time it takes, since machines are shared."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("sage", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sage")
