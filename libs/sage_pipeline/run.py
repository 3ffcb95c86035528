"""The run of one plan as a state machine: events in, commands out. No clock, no IO, no randomness of its own.

Every node starts once its inputs are there, all ready nodes at once. The first failure that cannot be retried,
a cancel or the deadline stops everything that runs; after that no node starts and the run has ended.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from sage_core import Cancelled, DeadlineExceeded, SageError, error_from_code
from sage_pipeline.plan import Plan
from sage_pipeline.values import Value
from sage_wire.messages import Tokens

__all__ = [
    "Begin",
    "CancelNode",
    "Command",
    "DeadlineReached",
    "Fail",
    "Forward",
    "NodeDone",
    "NodeFailed",
    "NodeFinished",
    "NodeStreamed",
    "PipelineRun",
    "RunCancelled",
    "RunEvent",
    "StartNode",
    "Succeed",
]


@dataclass(frozen=True, slots=True)
class Begin:
    """Start the run."""


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """An attempt at a node gave its value."""

    node_id: str
    attempt: int
    value: Value


@dataclass(frozen=True, slots=True)
class NodeFailed:
    """An attempt at a node failed."""

    node_id: str
    attempt: int
    error: SageError


@dataclass(frozen=True, slots=True)
class NodeStreamed:
    """An attempt at a node produced text."""

    node_id: str
    attempt: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """The caller no longer wants the run."""

    reason: str = "cancelled by the caller"


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The run's budget is spent."""


RunEvent = Begin | NodeFinished | NodeFailed | NodeStreamed | RunCancelled | DeadlineReached


@dataclass(frozen=True, slots=True)
class StartNode:
    """Start an attempt at a node after `delay_s`; it may take `budget_s` from now, the delay included."""

    node_id: str
    attempt: int
    inputs: Mapping[str, Value]
    budget_s: float
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CancelNode:
    """Stop an attempt that was started and has not ended."""

    node_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Give text of the output node to the caller."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class NodeDone:
    """A node has its value; for progress, stage times and sources."""

    node_id: str
    value: Value
    num_done: int


@dataclass(frozen=True, slots=True)
class Succeed:
    """The run ended with the output node's value."""

    value: Value


@dataclass(frozen=True, slots=True)
class Fail:
    """The run ended with `error`; the node that caused it is named in the message."""

    error: SageError


Command = StartNode | CancelNode | Forward | NodeDone | Succeed | Fail


class PipelineRun:
    """One run. `deadline` is absolute on the clock of `now`; `seed` fixes the jitter of retries.

    Events of attempts that ended or were cancelled are ignored, so they may arrive in any order and twice.
    """

    def __init__(self, plan: Plan, *, deadline: float, max_attempts: int = 3, seed: int = 0) -> None:
        self._plan = plan
        self._deadline = deadline
        self._max_attempts = max_attempts
        self._random = random.Random(seed)
        self._values: dict[str, Value] = {}
        self._attempts: dict[str, int] = {}
        self._done: set[str] = set()
        self._running: set[str] = set()
        self._streamed: set[str] = set()
        self._has_begun = False
        self.is_finished = False

    @property
    def num_nodes(self) -> int:
        """Nodes in the plan."""
        return len(self._plan.steps)

    @property
    def num_done(self) -> int:
        """Nodes that have their value."""
        return len(self._done)

    def handle(self, event: RunEvent, now: float) -> list[Command]:
        """Take one event; return what must happen, in order. The last command of a run is Succeed or Fail."""
        if self.is_finished:
            return []
        match event:
            case Begin():
                return self._begin(now)
            case NodeFinished(node_id, attempt, value):
                return self._finished(node_id, value, now) if self._is_current(node_id, attempt) else []
            case NodeFailed(node_id, attempt, error):
                return self._failed(node_id, error, now) if self._is_current(node_id, attempt) else []
            case NodeStreamed(node_id, attempt, tokens):
                if not self._is_current(node_id, attempt) or not self._plan.step(node_id).is_streamed:
                    return []
                self._streamed.add(node_id)
                return [Forward(tokens)]
            case RunCancelled(reason):
                return self._end(Cancelled(f"pipeline '{self._plan.pipeline}': {reason}"), reason)
            case DeadlineReached():
                waiting = [step.id for step in self._plan.steps if step.id not in self._done]
                return self._end(
                    DeadlineExceeded(
                        f"pipeline '{self._plan.pipeline}' ran out of its budget; not finished: {', '.join(waiting)}"
                    ),
                    "the deadline of the run has passed",
                )

    def _is_current(self, node_id: str, attempt: int) -> bool:
        return node_id in self._running and self._attempts[node_id] == attempt

    def _begin(self, now: float) -> list[Command]:
        if self._has_begun:
            return []
        self._has_begun = True
        return [self._start(step.id, now) for step in self._plan.steps if not step.inputs]

    def _start(self, node_id: str, now: float, delay_s: float = 0.0) -> StartNode:
        step = self._plan.step(node_id)
        attempt = self._attempts[node_id] = self._attempts.get(node_id, 0) + 1
        self._running.add(node_id)
        inputs = {port: self._values[source] for port, source in step.inputs.items()}
        return StartNode(node_id, attempt, inputs, self._budget(node_id, now), delay_s)

    def _budget(self, node_id: str, now: float) -> float:
        """Keep back what the nodes behind this one need, by estimate; at most half of what is left.

        A node may use slack that others left, so an estimate that is too low costs nothing while there is time.
        """
        step = self._plan.step(node_id)
        remaining = max(0.0, self._deadline - now)
        through = step.estimate_s + step.after_s
        share_after = step.after_s / through if through > 0 else 0.0
        return remaining - min(step.after_s, remaining * share_after, remaining / 2)

    def _finished(self, node_id: str, value: Value, now: float) -> list[Command]:
        self._running.discard(node_id)
        self._done.add(node_id)
        self._values[node_id] = value
        commands: list[Command] = [NodeDone(node_id, value, len(self._done))]
        for reader in self._plan.consumers(node_id):
            step = self._plan.step(reader)
            if reader not in self._attempts and self._done.issuperset(step.inputs.values()):
                commands.append(self._start(reader, now))
        self._forget(node_id)
        if len(self._done) == len(self._plan.steps):
            self.is_finished = True
            commands.append(Succeed(self._values[self._plan.output]))
        return commands

    def _forget(self, node_id: str) -> None:
        """Drop values that nobody will read again: an index run would otherwise hold its documents to the end."""
        for source in (node_id, *self._plan.step(node_id).inputs.values()):
            if source != self._plan.output and self._done.issuperset(self._plan.consumers(source)):
                self._values.pop(source, None)

    def _failed(self, node_id: str, error: SageError, now: float) -> list[Command]:
        self._running.discard(node_id)
        attempt = self._attempts[node_id]
        backoff = 0.1 * 2 ** (attempt - 1) * (1 + self._random.random())
        delay = max(error.retry_after or 0.0, backoff)
        if (
            error.retryable
            and self._plan.step(node_id).is_idempotent
            and node_id not in self._streamed  # what was streamed cannot be taken back
            and attempt < self._max_attempts
            and now + delay < self._deadline
        ):
            return [self._start(node_id, now, delay)]
        named = error_from_code(
            error.code,
            f"node '{node_id}': {error.message}",
            param=error.param,
            retry_after=error.retry_after,
        )
        return self._end(named, f"node '{node_id}' failed")

    def _end(self, error: SageError, reason: str) -> list[Command]:
        self.is_finished = True
        running = [step.id for step in self._plan.steps if step.id in self._running]
        self._running.clear()
        self._values.clear()
        return [*(CancelNode(node_id, self._attempts[node_id], reason) for node_id in running), Fail(error)]
