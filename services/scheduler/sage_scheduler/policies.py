"""The policy that the settings name."""

from __future__ import annotations

from sage_core import ConfigurationError
from sage_policy import Policy, make_policy
from sage_scheduler.settings import SchedulerSection

__all__ = ["policy_of"]


def policy_of(section: SchedulerSection) -> Policy:
    """Return the policy of `[scheduler]`. Raises ConfigurationError where it cannot be made, its options included."""
    try:
        return make_policy(
            section.policy,
            max_queued=section.max_queued,
            seed=section.seed,
            classes=section.slo_classes(),
            **section.weights,
        )
    except (TypeError, RuntimeError, ValueError) as error:
        reason = str(error).partition(" (#define")[0]
        raise ConfigurationError(
            f"scheduler.weights = {section.weights!r}: policy {section.policy} does not take them: {reason}"
        ) from None
