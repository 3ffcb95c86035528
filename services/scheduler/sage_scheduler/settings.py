"""`[scheduler]` of the settings file."""

from __future__ import annotations

from pydantic import Field, field_validator

from sage_core import ServiceSettings
from sage_core.settings import Section
from sage_policy import POLICIES

__all__ = ["SchedulerSection", "SchedulerSettings"]


class SchedulerSection(Section):
    """How requests are queued and placed."""

    policy: str = Field("least-outstanding", description="Scheduling policy of every pool.")
    max_queued: int = Field(1024, ge=1, description="Requests that may wait in one pool; more are refused.")
    max_receipts: int = Field(10_000, ge=0, description="Latest decisions kept for `sage explain`.")
    seed: int = Field(0, description="Seed of the policy's random ties.")

    @field_validator("policy")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"expected one of {', '.join(POLICIES)}")
        return value


class SchedulerSettings(ServiceSettings):
    """All settings of a scheduler process."""

    scheduler: SchedulerSection = Field(default_factory=lambda: SchedulerSection())
