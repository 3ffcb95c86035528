"""A valid pipeline: nodes, typed edges, parameters. Made by `build` from YAML, the Python DSL or plain data alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sage_pipeline.problems import Location
from sage_pipeline.values import EdgeType

__all__ = ["MAX_DEPTH", "MAX_NODES", "Node", "OptionValue", "Parameter", "Pipeline", "referenced_parameter"]

MAX_NODES: Final = 64
MAX_DEPTH: Final = 32
"""Nodes on the longest path."""

OptionValue = str | int | float | bool | list[str]
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


def referenced_parameter(value: object) -> str | None:
    """Return the name in `${name}` where `value` is exactly that, else None."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match.group(1).strip() if match else None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that one run may replace. Options take it as `${name}`, templates as `{{name}}`."""

    name: str
    default: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `options` holds only what differs from the defaults; `inputs` maps each bound port to a node id."""

    id: str
    type: str
    options: Mapping[str, OptionValue]
    inputs: Mapping[str, str]
    yields: EdgeType
    location: Location | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline that passed every check. Nodes are in the order of the file; equality ignores locations."""

    name: str
    nodes: tuple[Node, ...]
    output: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()

    def node(self, node_id: str) -> Node:
        """Return the node called `node_id`. Raises KeyError."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise KeyError(node_id)

    def in_order(self) -> Iterator[Node]:
        """Yield every node after its inputs; among those that are free to start, in the order of the file."""
        waiting = list(self.nodes)
        done: set[str] = set()
        while waiting:
            node = next(node for node in waiting if done.issuperset(node.inputs.values()))
            waiting.remove(node)
            done.add(node.id)
            yield node

    def to_data(self) -> dict[str, object]:
        """Return the plain data that YAML holds; building it again gives an equal pipeline. Inputs are explicit."""
        data: dict[str, object] = {"name": self.name}
        if self.description:
            data["description"] = self.description
        if self.parameters:
            data["parameters"] = {
                parameter.name: {"default": parameter.default}
                | ({"description": parameter.description} if parameter.description else {})
                for parameter in self.parameters
            }
        data["nodes"] = [
            {"id": node.id, "type": node.type}
            | dict(node.options)
            | ({"inputs": dict(node.inputs)} if node.inputs else {})
            for node in self.nodes
        ]
        data["output"] = self.output
        return data
