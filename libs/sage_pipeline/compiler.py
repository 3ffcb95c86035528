"""Pipeline to plan: fill parameters, order, place, find the critical path, share out the deadline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sage_core import BadRequest
from sage_pipeline.build import make_options
from sage_pipeline.graph import Pipeline
from sage_pipeline.nodes import CATALOGUE, find_conflict
from sage_pipeline.plan import Plan, Step
from sage_pipeline.problems import did_you_mean, listed

__all__ = ["MAX_PARAMETER_CHARS", "compile_pipeline", "with_critical_path"]

MAX_PARAMETER_CHARS = 4096


def compile_pipeline(pipeline: Pipeline, parameters: Mapping[str, str] | None = None) -> Plan:
    """Compile a checked pipeline for one set of parameters.

    Raises BadRequest, naming the parameter, for one that is not declared or whose value an option refuses.
    """
    values = _fill(pipeline, parameters or {})
    steps, source = [], None
    for node in pipeline.in_order():
        node_type = CATALOGUE[node.type]
        try:
            options = make_options(node_type, node.options, values)
        except ValueError as error:
            raise BadRequest(f"pipeline '{pipeline.name}': {error}", param="parameters") from None
        conflict = find_conflict(options, node.inputs)
        if conflict is not None:
            raise BadRequest(
                f"pipeline '{pipeline.name}' node '{node.id}': {conflict.message}", param="parameters"
            )
        if node_type.is_source:
            source = node.yields
        steps.append(
            Step(
                id=node.id,
                type=node.type,
                options=options,
                inputs=dict(node.inputs),
                yields=node.yields,
                placement=node_type.placement,
                task=node_type.task,
                pool=node_type.pool or str(getattr(options, "model", "")),
                estimate_s=node_type.estimate_s,
                is_streamed=node_type.streams and node.id == pipeline.output,
                is_idempotent=node_type.is_idempotent,
            )
        )
    assert source is not None  # a checked graph ends in a source
    plan = Plan(
        pipeline=pipeline.name,
        description=pipeline.description,
        source=source,
        output=pipeline.output,
        parameters=values,
        steps=tuple(steps),
        critical_path=(),
        critical_s=0.0,
    )
    return with_critical_path(plan)


def with_critical_path(plan: Plan) -> Plan:
    """Return `plan` with the longest path marked and every step's share of the deadline.

    A step's share is its estimate over the longest path through it, so the shares along any path sum to at most 1
    and those of the critical path to exactly 1.
    """
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for step in plan.steps:
        before[step.id] = max(
            (before[source] + plan.step(source).estimate_s for source in step.inputs.values()), default=0.0
        )
    for step in reversed(plan.steps):
        after[step.id] = max(
            (after[reader] + plan.step(reader).estimate_s for reader in plan.consumers(step.id)), default=0.0
        )
    path = _critical_path(plan, after)
    steps = []
    for step in plan.steps:
        through = before[step.id] + step.estimate_s + after[step.id]
        steps.append(
            replace(
                step,
                after_s=after[step.id],
                share=step.estimate_s / through if through > 0 else 0.0,
                is_critical=step.id in path,
            )
        )
    total = sum(plan.step(node_id).estimate_s for node_id in path)
    return replace(plan, steps=tuple(steps), critical_path=tuple(path), critical_s=total)


def _critical_path(plan: Plan, after: Mapping[str, float]) -> list[str]:
    def rank(node_id: str) -> float:
        return after[node_id] + plan.step(node_id).estimate_s

    path: list[str] = []
    ahead = [step.id for step in plan.steps if not step.inputs]
    while ahead:
        longest = max(ahead, key=rank)  # the first in plan order where several are equal
        path.append(longest)
        ahead = list(plan.consumers(longest))
    return path


def _fill(pipeline: Pipeline, given: Mapping[str, str]) -> dict[str, str]:
    values = {parameter.name: parameter.default for parameter in pipeline.parameters}
    for name, value in given.items():
        if name not in values:
            raise BadRequest(
                f"pipeline '{pipeline.name}' has no parameter '{name}'; declared: {listed(values)}"
                f"{did_you_mean(name, values)}",
                param="parameters",
            )
        if len(value) > MAX_PARAMETER_CHARS:
            raise BadRequest(
                f"parameter '{name}' has {len(value)} characters; at most {MAX_PARAMETER_CHARS} are allowed",
                param="parameters",
            )
        values[name] = value
    return values
