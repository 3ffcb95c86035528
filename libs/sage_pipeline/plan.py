"""The compiled pipeline: steps in order, where each runs, the critical path, shares of the deadline; and its faces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from sage_pipeline.nodes import Options, Placement
from sage_pipeline.values import EdgeType

__all__ = ["Plan", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """One node, ready to run.

    `estimate_s` is what the node typically takes and `after_s` the longest estimated path behind it;
    `share` is the part of the whole deadline that falls to it. `pool` is a pool's name, `auto`, or empty where
    the planner does the work itself.
    """

    id: str
    type: str
    options: Options
    inputs: Mapping[str, str]
    yields: EdgeType
    placement: Placement
    task: str
    pool: str
    estimate_s: float
    after_s: float = 0.0
    share: float = 0.0
    is_critical: bool = False
    is_streamed: bool = False
    is_idempotent: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline compiled for one set of parameters. Steps stand after their inputs; the order is stable."""

    pipeline: str
    description: str
    source: EdgeType
    output: str
    parameters: Mapping[str, str]
    steps: tuple[Step, ...]
    critical_path: tuple[str, ...]
    critical_s: float
    _by_id: Mapping[str, Step] = field(init=False, repr=False, compare=False)
    _consumers: Mapping[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        consumers: dict[str, list[str]] = {step.id: [] for step in self.steps}
        for step in self.steps:
            for source in dict.fromkeys(step.inputs.values()):
                consumers[source].append(step.id)
        object.__setattr__(self, "_by_id", {step.id: step for step in self.steps})
        object.__setattr__(self, "_consumers", {key: tuple(value) for key, value in consumers.items()})

    def step(self, node_id: str) -> Step:
        """Return the step of `node_id`. Raises KeyError."""
        return self._by_id[node_id]

    def consumers(self, node_id: str) -> tuple[str, ...]:
        """Return the nodes that read the value of `node_id`, in plan order."""
        return self._consumers[node_id]

    @property
    def yields(self) -> EdgeType:
        """The type a run answers with."""
        return self._by_id[self.output].yields

    def to_text(self) -> str:
        """Return the plan for a reader, one line per step."""
        lines = [f"pipeline/{self.pipeline}: {self.source} -> {self.yields}"]
        if self.description:
            lines.append(f"  {self.description}")
        if self.parameters:
            lines.append(
                "  parameters: " + ", ".join(f"{key}={value}" for key, value in self.parameters.items())
            )
        rows = [("step", "runs on", "pool", "reads", "yields", "share")]
        for step in self.steps:
            reads = ", ".join(f"{port}={source}" for port, source in step.inputs.items())
            name = step.id if step.id == step.type else f"{step.id} ({step.type})"
            mark = "*" if step.is_critical else " "
            pool = f"{step.task}: {step.pool}" if step.task else step.pool
            kind = f"{step.yields}, streamed" if step.is_streamed else str(step.yields)
            rows.append(
                (f"{mark} {name}", step.placement, pool or "-", reads or "-", kind, f"{step.share:.1%}")
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(("  " + "  ".join(cells)).rstrip())
        lines.append(f"  * critical path: {' -> '.join(self.critical_path)}, about {self.critical_s:.2f} s")
        return "\n".join(lines)

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart; the critical path is drawn thick."""
        lines = ["flowchart LR"]
        for step in self.steps:
            name = step.id if step.id == step.type else f"{step.id}<br/>{step.type}"
            lines.append(f'    {step.id}_["{name}<br/><i>{step.placement}</i>"]')
        critical = set(zip(self.critical_path, self.critical_path[1:], strict=False))
        for step in self.steps:
            for port, source in step.inputs.items():
                arrow = "==>" if (source, step.id) in critical else "-->"
                lines.append(f'    {source}_ {arrow}|"{port}: {self.step(source).yields}"| {step.id}_')
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the plan as JSON; equal plans give equal text."""
        data = {
            "pipeline": self.pipeline,
            "description": self.description,
            "source": self.source,
            "output": self.output,
            "yields": self.yields,
            "parameters": dict(self.parameters),
            "critical_path": list(self.critical_path),
            "critical_s": round(self.critical_s, 6),
            "steps": [
                {
                    "id": step.id,
                    "type": step.type,
                    "options": msgspec.to_builtins(step.options),
                    "inputs": dict(step.inputs),
                    "yields": step.yields,
                    "placement": step.placement,
                    "task": step.task,
                    "pool": step.pool,
                    "estimate_s": step.estimate_s,
                    "share": round(step.share, 6),
                    "is_critical": step.is_critical,
                    "is_streamed": step.is_streamed,
                }
                for step in self.steps
            ],
        }
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
