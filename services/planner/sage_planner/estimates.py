"""What must still follow a node: the estimates that turn a run's targets into targets of its nodes. Pure.

Each node takes e(v), learned from runs, and b(v), the longest path of its readers, follows it. A node in the middle is
late when its own end plus b(v) is, so its target is the run's, on the run's clock, with b(v) behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from sage_pipeline import Plan, Step
from sage_wire.messages import Targets

__all__ = ["Following", "NodeTimes", "node_targets"]

WEIGHT: Final = 0.2
"""Of the newest run in what a node is expected to take."""


@dataclass(frozen=True, slots=True)
class Following:
    """Seconds that follow a node until the run's first token, and until its end."""

    first_token: float
    end: float


class NodeTimes:
    """How long nodes take, by pipeline and node; before the first run what the compiler estimates."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}
        self._first_token: dict[tuple[str, str], float] = {}

    def finished(self, pipeline: str, node_id: str, seconds: float) -> None:
        """Learn what a node took from its start to its end."""
        _learn(self._seconds, (pipeline, node_id), seconds)

    def spoke(self, pipeline: str, node_id: str, seconds: float) -> None:
        """Learn what a streamed node took from its start to its first token."""
        _learn(self._first_token, (pipeline, node_id), seconds)

    def following(self, plan: Plan, node_id: str) -> Following:
        """Return what follows the end of a node."""
        first_token: dict[str, float] = {}
        end: dict[str, float] = {}
        for step in reversed(plan.steps):
            readers = plan.consumers(step.id)
            end[step.id] = max((self._of(plan, reader) + end[reader] for reader in readers), default=0.0)
            first_token[step.id] = max(
                (self._until_token(plan, reader) + first_token[reader] for reader in readers), default=0.0
            )
            if step.id == node_id:
                break
        return Following(first_token[node_id], end[node_id])

    def _of(self, plan: Plan, node_id: str) -> float:
        return self._seconds.get((plan.pipeline, node_id), plan.step(node_id).estimate_s)

    def _until_token(self, plan: Plan, node_id: str) -> float:
        """What a node adds before the run speaks: a streamed one speaks before it ends."""
        whole = self._of(plan, node_id)
        if not plan.step(node_id).is_streamed:
            return whole
        return min(whole, self._first_token.get((plan.pipeline, node_id), whole))


def node_targets(plan: Plan, step: Step, run: Targets, elapsed: float, times: NodeTimes) -> Targets:
    """Return the targets of a node's requests, `elapsed` seconds after the run reached this planner."""
    started_ago_ms = run.started_ago_ms + elapsed * 1000
    if step.is_streamed or not plan.consumers(step.id):
        return msgspec.structs.replace(run, started_ago_ms=started_ago_ms)
    following = times.following(plan, step.id)
    ends = [(run.ttft_ms, following.first_token), (run.e2e_ms, following.end)]
    given = [(target, behind) for target, behind in ends if target is not None]
    # The target that leaves the least; without any, the class's, which the scheduler knows.
    target, behind = min(
        given, key=lambda each: each[0] - each[1] * 1000, default=(None, following.first_token)
    )
    return Targets(
        # The result of work without tokens is its first token.
        ttft_ms=None if step.task == "generate" else target,
        e2e_ms=target,
        started_ago_ms=started_ago_ms,
        downstream_ms=behind * 1000,
    )


def _learn(known: dict[tuple[str, str], float], key: tuple[str, str], seconds: float) -> None:
    before = known.get(key)
    known[key] = seconds if before is None else before + WEIGHT * (seconds - before)
