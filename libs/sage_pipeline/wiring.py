"""Binds ports to nodes and checks the graph: types, cycles, missing inputs, unused nodes, depth, output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sage_pipeline.graph import MAX_DEPTH
from sage_pipeline.nodes import NodeType, Port
from sage_pipeline.problems import Problem, did_you_mean, listed
from sage_pipeline.values import EdgeType
from sage_pipeline.yaml_source import Locations, Path

__all__ = ["OUTPUT_TYPES", "Wire", "Wiring", "wire"]

OUTPUT_TYPES = (
    EdgeType.ANSWER,
    EdgeType.HITS,
    EdgeType.VECTOR,
    EdgeType.CHUNKS,
    EdgeType.INDEX_REPORT,
)
"""What a run can answer with."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A node before wiring. `inputs` None: every port takes the nearest earlier node that yields what it accepts."""

    id: str
    type: NodeType
    inputs: Mapping[str, str] | None
    path: Path


@dataclass(slots=True)
class Wiring:
    """The result: inputs and output type per node. Complete only without problems."""

    output: str = ""
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    types: dict[str, EdgeType] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def wire(nodes: Sequence[Wire], output: str | None, locations: Locations) -> Wiring:
    """Bind and check `nodes`, which have distinct ids. `output` None means the last node."""
    return _Wirer(nodes, locations).run(output)


class _Wirer:
    def __init__(self, nodes: Sequence[Wire], locations: Locations) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._order = list(nodes)
        self._locations = locations
        self._result = Wiring()
        self._has_output = False

    def run(self, output: str | None) -> Wiring:
        result = self._result
        for node in self._order:
            if node.inputs is not None:
                result.inputs[node.id] = self._explicit(node, node.inputs)
        for index, node in enumerate(self._order):
            if node.inputs is None:
                result.inputs[node.id] = self._implicit(node, self._order[:index])
        self._has_output = output is not None
        result.output = output or self._order[-1].id
        if result.output not in self._nodes:
            self._problem(
                ("output",),
                f"output '{result.output}' is not a node; expected one of {listed(self._nodes)}"
                f"{did_you_mean(result.output, self._nodes)}",
            )
        if not result.problems:
            self._check_cycles()
        if not result.problems:
            self._check_types()
        if not result.problems:
            self._check_shape()
        return result

    def _problem(self, path: Path, message: str, *, at_key: bool = False) -> None:
        place = self._locations.key(path) if at_key else self._locations.value(path)
        self._result.problems.append(Problem(message, place))

    # -- binding -------------------------------------------------------------------------------------------

    def _explicit(self, node: Wire, given: Mapping[str, str]) -> dict[str, str]:
        path = (*node.path, "inputs")
        where = f"node '{node.id}' ({node.type.name})"
        bound: dict[str, str] = {}
        for port_name, source in given.items():
            port = node.type.port(port_name)
            if port is None:
                self._problem(
                    (*path, port_name),
                    f"{where} has no port '{port_name}'; expected one of {listed(node.type.port_names)}"
                    f"{did_you_mean(port_name, node.type.port_names)}",
                    at_key=True,
                )
            elif source not in self._nodes:
                self._problem(
                    (*path, port_name),
                    f"{where} port '{port_name}': unknown node '{source}'; expected one of "
                    f"{listed(self._nodes)}{did_you_mean(source, self._nodes)}",
                )
            else:
                bound[port_name] = source
        for port in node.type.ports:
            if port.is_required and port.name not in given:
                self._problem(
                    path,
                    f"{where} has nothing at port '{port.name}'; accepted: {listed(port.accepts)} "
                    "(a node with 'inputs' names all of its ports)",
                    at_key=True,
                )
        return _in_port_order(node.type, bound)

    def _implicit(self, node: Wire, earlier: Sequence[Wire]) -> dict[str, str]:
        bound: dict[str, str] = {}
        for port in node.type.ports:
            for candidate in reversed(earlier):
                if self._type_of(candidate.id, set()) in port.accepts:
                    bound[port.name] = candidate.id
                    break
            else:
                if port.is_required:
                    self._missing(node, port, earlier)
        return bound

    def _missing(self, node: Wire, port: Port, earlier: Sequence[Wire]) -> None:
        found = listed(f"{other.id} ({self._type_of(other.id, set()) or 'unknown'})" for other in earlier)
        self._problem(
            node.path,
            f"node '{node.id}' ({node.type.name}) has nothing at port '{port.name}'; accepted: "
            f"{listed(port.accepts)}; found before it: {found}",
        )

    def _type_of(self, node_id: str, seen: set[str]) -> EdgeType | None:
        node = self._nodes.get(node_id)
        if node is None or node_id in seen:
            return None
        first = node.type.port_names[0] if node.type.ports else None
        source = self._result.inputs.get(node_id, {}).get(first) if first is not None else None
        return node.type.yielded(self._type_of(source, seen | {node_id}) if source is not None else None)

    # -- checks --------------------------------------------------------------------------------------------

    def _check_cycles(self) -> None:
        finished: set[str] = set()
        for start in self._nodes:
            trail: list[str] = []
            self._visit(start, trail, finished)
            if self._result.problems:
                return

    def _visit(self, node_id: str, trail: list[str], finished: set[str]) -> None:
        if node_id in finished or self._result.problems:
            return
        if node_id in trail:
            cycle = [*trail[trail.index(node_id) :], node_id]
            reader = self._nodes[cycle[0]]
            port = next(port for port, source in self._result.inputs[reader.id].items() if source == cycle[1])
            # The trail walks from a node to what it reads; values flow the other way.
            self._problem(
                (*reader.path, "inputs", port),
                f"node '{reader.id}' port '{port}': nodes form a cycle: {' -> '.join(reversed(cycle))}",
            )
            return
        trail.append(node_id)
        for source in self._result.inputs[node_id].values():
            self._visit(source, trail, finished)
        trail.pop()
        finished.add(node_id)

    def _check_types(self) -> None:
        for node in self._order:
            for port_name, source in self._result.inputs[node.id].items():
                port = node.type.port(port_name)
                found = self._type_of(source, set())
                if port is not None and found is not None and found not in port.accepts:
                    self._problem(
                        (*node.path, "inputs", port_name),
                        f"node '{node.id}' ({node.type.name}) port '{port_name}': found {found} from '{source}' "
                        f"({self._nodes[source].type.name}); accepted: {listed(port.accepts)}",
                    )
            kind = self._type_of(node.id, set())
            if kind is not None:
                self._result.types[node.id] = kind

    def _check_shape(self) -> None:
        result = self._result
        sources = [node for node in self._order if node.type.is_source]
        for second in sources[1:]:
            self._problem(
                second.path,
                f"node '{second.id}' ({second.type.name}) is a second source, after '{sources[0].id}'; "
                "a run has one input",
            )
        used, waiting = set(), [result.output]
        while waiting:
            node_id = waiting.pop()
            if node_id not in used:
                used.add(node_id)
                waiting.extend(result.inputs[node_id].values())
        for node in self._order:
            if node.id not in used:
                self._problem(
                    node.path,
                    f"node '{node.id}' is not used: no edge leads from it to the output '{result.output}'",
                )
        kind = result.types[result.output]
        if kind not in OUTPUT_TYPES:
            self._problem(
                ("output",) if self._has_output else self._nodes[result.output].path,
                f"output '{result.output}' ({self._nodes[result.output].type.name}) yields {kind}; accepted as "
                f"the output of a pipeline: {listed(OUTPUT_TYPES)}",
            )
        depth = self._depth()
        if depth > MAX_DEPTH:
            self._problem(("nodes",), f"the longest path has {depth} nodes; at most {MAX_DEPTH} are allowed")

    def _depth(self) -> int:
        depths: dict[str, int] = {}

        def depth(node_id: str) -> int:
            if node_id not in depths:
                depths[node_id] = 1 + max(map(depth, self._result.inputs[node_id].values()), default=0)
            return depths[node_id]

        return max(map(depth, self._nodes))


def _in_port_order(node_type: NodeType, inputs: Mapping[str, str]) -> dict[str, str]:
    ordered = {name: inputs[name] for name in node_type.port_names if name in inputs}
    return ordered | {name: source for name, source in inputs.items() if name not in ordered}
