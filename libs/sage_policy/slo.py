"""SLO classes: the targets and the tier that a request's class stands for."""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

from sage_policy.policy import Submitted

__all__ = ["DEFAULT_CLASSES", "SloClass", "Targets", "targets_of"]


class SloClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a class of requests is promised. Seconds; None: no target.

    The TTFT target of a request is `ttft + num_prompt_tokens / ttft_tokens_per_second`: long prompts take longer
    everywhere. Batch work (embed, rerank, operators) has its completion as first token. `tier` 0 is interactive,
    1 normal, 2 batch. `may_shed` False: late work of this class waits behind all other instead of being refused.
    """

    tier: int = 0
    ttft: float | None = None
    ttft_tokens_per_second: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    may_shed: bool = True


DEFAULT_CLASSES: Final[dict[str, SloClass]] = {
    "interactive": SloClass(tier=0),
    "normal": SloClass(tier=1),
    "batch": SloClass(tier=2, may_shed=False),
}
"""Classes without targets: work is placed well and kept in order, and refused only once its budget is spent."""


class Targets(msgspec.Struct, frozen=True):
    """The targets of one request, infinite where there is none."""

    tier: int
    may_shed: bool
    ttft: float
    tpot: float
    e2e: float


def targets_of(event: Submitted, classes: dict[str, SloClass]) -> Targets:
    """Return the request's own targets where it names them, else its class's. An unknown class is interactive."""
    slo = classes.get(event.slo_class) or classes.get("interactive") or SloClass()
    ttft = event.ttft_slo
    if ttft is None and slo.ttft is not None:
        per_token = 1 / slo.ttft_tokens_per_second if slo.ttft_tokens_per_second else 0.0
        ttft = slo.ttft + event.num_prompt_tokens * per_token
    tpot = slo.tpot if event.tpot_slo is None else event.tpot_slo
    e2e = slo.e2e if event.e2e_slo is None else event.e2e_slo
    return Targets(slo.tier, slo.may_shed, _or_inf(ttft), _or_inf(tpot), _or_inf(e2e))


def _or_inf(value: float | None) -> float:
    return inf if value is None else value
