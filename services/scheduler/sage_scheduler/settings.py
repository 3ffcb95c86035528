"""`[scheduler]` of the settings file."""

from __future__ import annotations

import msgspec
from pydantic import Field, field_validator

from sage_core import ByteSize, ConfigurationError, Duration, ServiceSettings
from sage_core.settings import Section
from sage_policy import DEFAULT_CLASSES, SloClass, policy_options
from sage_policy.user_policy import is_user_policy

__all__ = ["SchedulerSection", "SchedulerSettings", "SloClassSection"]


class SloClassSection(Section):
    """`[scheduler.classes.<name>]`: what a class of requests is promised where the request names no target itself.

    What is left out stays as it is for `interactive`, `normal` and `batch`; other names are classes of their own.
    """

    tier: int = Field(0, ge=0, le=2, description="0: interactive, 1: normal, 2: batch.")
    ttft: Duration | None = Field(None, description="Time to first token; unset: no target.")
    ttft_tokens_per_second: float | None = Field(
        None, gt=0, description="Prompt tokens per second that are added to `ttft`; unset: none."
    )
    tpot: Duration | None = Field(
        None, description="Time per output token after the first; unset: no target."
    )
    e2e: Duration | None = Field(None, description="Time to the end; unset: no target.")
    may_shed: bool = Field(
        True, description="Late work may be refused; false: it waits behind all other instead."
    )


class SchedulerSection(Section):
    """How requests are queued and placed."""

    policy: str = Field(
        "hybrid", description="Scheduling policy of all pools; see docs/explanation/scheduling.md."
    )
    max_queued: int = Field(1024, ge=1, description="Requests that may wait in one pool; more are refused.")
    max_receipts: int = Field(10_000, ge=0, description="Latest decisions kept for `sage explain`.")
    seed: int = Field(0, description="Seed of the policy's random ties.")
    weights: dict[str, bool | int | float] = Field(
        default_factory=dict, description="Options of the policy by name, for tuning."
    )
    classes: dict[str, SloClassSection] = Field(
        default_factory=dict,
        description="Targets by class (`x-slo-class`): tables [scheduler.classes.interactive] …, see the README.",
    )
    lease_ttl: Duration = Field(
        2.0, ge=1, le=60, description="How long a pool stays without a leader after its scheduler was killed."
    )
    event_log: bool = Field(
        True, description="Write what the policy saw and decided to the state folder, for `sage replay`."
    )
    event_log_size: ByteSize = Field(
        64 * 2**20, ge=2**16, description="Size of one event log; a full one is not continued."
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, value: str) -> str:
        if not is_user_policy(value):
            try:
                policy_options(value)
            except ConfigurationError as error:
                raise ValueError(error.message) from None
        return value

    @field_validator("classes")
    @classmethod
    def _named(cls, value: dict[str, SloClassSection]) -> dict[str, SloClassSection]:
        if any(not name.strip() for name in value):
            raise ValueError("the name of a class is empty")
        return value

    def slo_classes(self) -> dict[str, SloClass]:
        """Return the classes as policies know them."""
        named = {
            name: msgspec.structs.replace(
                DEFAULT_CLASSES.get(name, SloClass()), **section.model_dump(exclude_unset=True)
            )
            for name, section in self.classes.items()
        }
        return DEFAULT_CLASSES | named


class SchedulerSettings(ServiceSettings):
    """All settings of a scheduler process."""

    scheduler: SchedulerSection = Field(default_factory=lambda: SchedulerSection())
