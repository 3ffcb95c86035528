"""Prometheus metrics of the scheduler."""

from __future__ import annotations

from typing import Final

from sage_telemetry import metrics

__all__ = ["DECISIONS", "HELD", "LED_POOLS", "QUEUE_SECONDS", "WANTED_INSTANCES"]

DECISIONS: Final = metrics.counter(
    "sage_scheduler_decisions_total", "Decisions by outcome and error code.", ["decision", "code"]
)
HELD: Final = metrics.gauge("sage_scheduler_held_requests", "Requests queued or running.")
LED_POOLS: Final = metrics.gauge("sage_scheduler_led_pools", "Pools that this scheduler leads.")
QUEUE_SECONDS: Final = metrics.histogram("sage_scheduler_queue_seconds", "Seconds from submit to dispatch.")
WANTED_INSTANCES: Final = metrics.gauge(
    "sage_scheduler_wanted_instances", "Instances with which the pool would keep its targets.", ["pool"]
)
