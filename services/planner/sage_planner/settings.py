"""`[planner]` of the settings file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from sage_core import Duration, ServiceSettings
from sage_core.settings import Section

__all__ = ["PlannerSection", "PlannerSettings"]


class PlannerSection(Section):
    """Which pipelines are served, how many run at once, and how durable jobs are retried."""

    pipelines_dir: Path | None = Field(
        None,
        description="Folder with further *.yaml pipelines; one with the name of a packaged one replaces it.",
    )
    max_runs: int = Field(64, ge=1, description="Pipeline runs at once.")
    max_node_attempts: int = Field(3, ge=1, le=10, description="Attempts at a node within the run's budget.")
    max_jobs: int = Field(4, ge=0, description="Durable jobs at once; 0 leaves them to other planners.")
    job_ack_wait: Duration = Field(
        30.0, ge=1, description="Silence after which a job goes to another planner."
    )
    job_max_attempts: int = Field(
        4, ge=1, le=100, description="Runs of one job before it is failed for good."
    )
    job_retry_delay: Duration = Field(
        1.0,
        gt=0,
        description="Wait before a job's second run; doubles with each further one, up to a minute.",
    )


class PlannerSettings(ServiceSettings):
    """All settings of a planner process."""

    planner: PlannerSection = Field(default_factory=lambda: PlannerSection())
