"""Prometheus metrics of the planner. Pipeline and node names come from its own files, never from callers."""

from __future__ import annotations

from typing import Final

from sage_telemetry import metrics

__all__ = ["JOBS", "JOBS_RUNNING", "NODE_SECONDS", "RUNS"]

RUNS: Final = metrics.counter("sage_planner_runs_total", "Pipeline runs by outcome.", ["pipeline", "outcome"])
NODE_SECONDS: Final = metrics.histogram(
    "sage_planner_node_seconds",
    "Seconds from a node's start to its value, retries included.",
    ["pipeline", "node"],
)
JOBS: Final = metrics.counter(
    "sage_planner_jobs_total", "Deliveries of durable jobs by outcome.", ["outcome"]
)
JOBS_RUNNING: Final = metrics.gauge("sage_planner_jobs_running", "Durable jobs that run here.")
