"""Plain data to a checked `Pipeline`: structure here, wiring in `wiring.py`. All problems are reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from sage_pipeline.graph import MAX_NODES, Node, OptionValue, Parameter, Pipeline, referenced_parameter
from sage_pipeline.nodes import CATALOGUE, NodeType, Options, PromptOptions, find_conflict
from sage_pipeline.problems import Location, PipelineError, Problem, did_you_mean, listed
from sage_pipeline.template import TemplateError, parse_template
from sage_pipeline.wiring import Wire, wire
from sage_pipeline.yaml_source import Locations, Path, load_yaml

__all__ = ["build", "convert_option", "make_options", "parse_pipeline"]

_PIPELINE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_TOP_KEYS = ("name", "description", "parameters", "nodes", "output")
_NODE_KEYS = ("id", "type", "inputs")
_MAX_PARAMETERS = 32
_MAX_TEXT = 4096


def parse_pipeline(text: str | bytes, file: str = "<pipeline>") -> Pipeline:
    """Read a pipeline from YAML. Raises PipelineError with one `file:line:column: …` line per problem."""
    data, locations = load_yaml(text, file)
    return build(data, locations)


def build(data: object, locations: Locations | None = None) -> Pipeline:
    """Check plain data and return the pipeline it declares. Raises PipelineError with every problem found."""
    return _Builder(locations or Locations()).build(data)


def convert_option(node_type: NodeType, name: str, value: object, *, is_text: bool = False) -> object:
    """Return `value` as option `name` wants it; `is_text` lets a parameter's text become a number.

    Raises ValueError saying what was found and what is expected.
    """
    kind = next(info.type for info in msgspec.structs.fields(node_type.options) if info.name == name)
    try:
        return msgspec.convert(value, kind, strict=not is_text)
    except msgspec.ValidationError as error:
        reason = str(error)[:1].lower() + str(error)[1:]
        raise ValueError(f"found {_shown(value)}; {reason}") from None


def make_options(
    node_type: NodeType, raw: Mapping[str, OptionValue], parameters: Mapping[str, str]
) -> Options:
    """Return the options of a checked node with `parameters` filled in. Raises ValueError naming the parameter."""
    values = {}
    for name, value in raw.items():
        reference = referenced_parameter(value)
        if reference is None:
            values[name] = convert_option(node_type, name, value)
            continue
        try:
            values[name] = convert_option(node_type, name, parameters[reference], is_text=True)
        except ValueError as error:
            raise ValueError(f"parameter '{reference}', which sets '{name}': {error}") from None
    return node_type.options(**values)


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "…"


@dataclass(slots=True)
class _Draft:
    index: int
    id: str
    type: NodeType
    raw: dict[str, OptionValue] = field(default_factory=dict)
    inputs: dict[str, str] | None = None
    options: Options | None = None

    @property
    def path(self) -> Path:
        return ("nodes", self.index)


class _Builder:
    """One pass over one document."""

    def __init__(self, locations: Locations) -> None:
        self._locations = locations
        self._problems: list[Problem] = []
        self._used_parameters: set[str] = set()

    def build(self, data: object) -> Pipeline:
        self._refuse_unsendable((), data)
        if self._problems:
            raise PipelineError(self._problems)
        if not isinstance(data, dict):
            self._value((), f"found {_shown(data)}; expected a mapping with {listed(_TOP_KEYS)}")
            raise PipelineError(self._problems)
        self._refuse_unknown((), data, _TOP_KEYS, "a pipeline")
        name = self._text(data, ("name",), _PIPELINE_NAME, "1 to 63 of a-z, 0-9 and '-'", is_required=True)
        description = self._text(data, ("description",))
        parameters = self._parameters(data.get("parameters"))
        output = self._text(data, ("output",), _IDENTIFIER, "the id of a node")
        drafts = self._nodes(data)
        defaults = {parameter.name: parameter.default for parameter in parameters}
        for draft in drafts:
            self._options(draft, defaults)
        if self._problems:  # wiring over nodes that were refused would only add noise
            raise PipelineError(self._problems)
        wires = [Wire(draft.id, draft.type, draft.inputs, draft.path) for draft in drafts]
        wiring = wire(wires, output or None, self._locations)
        if wiring.problems:
            raise PipelineError(wiring.problems)
        for draft in drafts:
            self._check_node(draft, wiring.inputs[draft.id], defaults)
        for parameter in parameters:
            if parameter.name not in self._used_parameters:
                self._key(("parameters", parameter.name), f"parameter '{parameter.name}' is not used")
        if self._problems:
            raise PipelineError(self._problems)
        nodes = tuple(
            Node(
                draft.id,
                draft.type.name,
                _without_defaults(draft),
                wiring.inputs[draft.id],
                wiring.types[draft.id],
                self._locations.value(draft.path),
            )
            for draft in drafts
        )
        return Pipeline(name, nodes, wiring.output, description, parameters)

    # -- problems ------------------------------------------------------------------------------------------

    def _value(self, path: Path, message: str) -> None:
        self._problems.append(Problem(message, self._locations.value(path)))

    def _key(self, path: Path, message: str) -> None:
        self._problems.append(Problem(message, self._locations.key(path)))

    def _refuse_unknown(
        self, path: Path, data: Mapping[str, object], known: Iterable[str], what: str
    ) -> None:
        names = list(known)
        for key in data:
            if key not in names:
                self._key(
                    (*path, key),
                    f"unknown key '{key}' in {what}; expected one of {listed(names)}{did_you_mean(key, names)}",
                )

    def _refuse_unsendable(self, path: Path, data: object) -> None:
        """Refuse text that no message can carry, and keys that a line of text cannot show."""
        if isinstance(data, str) and _SURROGATE.search(data):
            self._value(path, f"found {_shown(data)}; an unpaired surrogate is half a character")
        elif isinstance(data, list):
            for index, item in enumerate(data):
                self._refuse_unsendable((*path, index), item)
        elif isinstance(data, dict):
            for key, value in data.items():
                found = _SURROGATE.search(key) or _CONTROL.search(key)
                if found is not None:
                    what = "an unpaired surrogate" if _SURROGATE.match(found[0]) else "a control character"
                    self._key((*path, key), f"key {key!a} holds {what}; expected a name")
                self._refuse_unsendable((*path, key), value)

    # -- structure -----------------------------------------------------------------------------------------

    def _text(
        self,
        data: Mapping[str, object],
        path: Path,
        pattern: re.Pattern[str] | None = None,
        expected: str = "text",
        *,
        is_required: bool = False,
    ) -> str:
        key = str(path[-1])
        value = data.get(key)
        if value is None and key not in data and not is_required:
            return ""
        if key not in data:
            self._value(path[:-1], f"'{key}' is missing; expected {expected}")
        elif not isinstance(value, str) or (pattern is not None and pattern.fullmatch(value) is None):
            self._value(path, f"'{key}' is {_shown(value)}; expected {expected}")
        elif len(value) > _MAX_TEXT:
            self._value(path, f"'{key}' has {len(value)} characters; at most {_MAX_TEXT} are allowed")
        else:
            return value
        return ""

    def _parameters(self, data: object) -> tuple[Parameter, ...]:
        if data is None:
            return ()
        if not isinstance(data, dict):
            self._value(
                ("parameters",), f"'parameters' is {_shown(data)}; expected a mapping of name to default"
            )
            return ()
        if len(data) > _MAX_PARAMETERS:
            self._key(("parameters",), f"{len(data)} parameters; at most {_MAX_PARAMETERS} are allowed")
        found = []
        for name, body in data.items():
            path: Path = ("parameters", name)
            if _IDENTIFIER.fullmatch(name) is None:
                self._key(path, f"parameter name '{name}'; expected a-z, 0-9 and '_', starting with a letter")
            if not isinstance(body, dict):
                self._value(path, f"parameter '{name}' is {_shown(body)}; expected a mapping with 'default'")
                continue
            self._refuse_unknown(path, body, ("default", "description"), f"parameter '{name}'")
            default = body.get("default")
            if isinstance(default, bool) or not isinstance(default, str | int | float):
                self._value(
                    (*path, "default"), f"parameter '{name}' needs a 'default' that is text or a number"
                )
                continue
            found.append(Parameter(name, str(default), self._text(body, (*path, "description"))))
        return tuple(found)

    def _nodes(self, data: Mapping[str, object]) -> list[_Draft]:
        nodes = data.get("nodes")
        if "nodes" not in data:
            self._value((), "'nodes' is missing; expected a list of nodes")
            return []
        if not isinstance(nodes, list) or not nodes:
            self._value(("nodes",), f"'nodes' is {_shown(nodes)}; expected a list with at least one node")
            return []
        if len(nodes) > MAX_NODES:
            self._value(("nodes",), f"{len(nodes)} nodes; at most {MAX_NODES} are allowed")
            return []
        drafts: list[_Draft] = []
        places: dict[str, Location | None] = {}
        for index, body in enumerate(nodes):
            draft = self._node(index, body)
            if draft is None:
                continue
            if draft.id in places:
                first = places[draft.id]
                where = f", first in line {first.line}" if first is not None else ""
                hint = "" if isinstance(body, dict) and "id" in body else "; give one of them an 'id'"
                self._value((*draft.path, "id"), f"two nodes have the id '{draft.id}'{where}{hint}")
            else:
                places[draft.id] = self._locations.value(draft.path)
                drafts.append(draft)
        return drafts

    def _node(self, index: int, body: object) -> _Draft | None:
        path: Path = ("nodes", index)
        if not isinstance(body, dict):
            self._value(path, f"found {_shown(body)}; expected a node, a mapping with 'type'")
            return None
        type_name = body.get("type")
        if not isinstance(type_name, str) or type_name not in CATALOGUE:
            found = "'type' is missing" if "type" not in body else f"unknown node type {_shown(type_name)}"
            self._value(
                (*path, "type"),
                f"{found}; expected one of {listed(CATALOGUE)}{did_you_mean(str(type_name), CATALOGUE)}",
            )
            return None
        node_type = CATALOGUE[type_name]
        node_id = self._text(body, (*path, "id"), _IDENTIFIER, "a-z, 0-9 and '_', starting with a letter")
        draft = _Draft(index, node_id or type_name, node_type)
        names = [*_NODE_KEYS, *node_type.options.__struct_fields__]
        self._refuse_unknown(path, body, names, f"node '{draft.id}' ({type_name})")
        draft.raw = {key: value for key, value in body.items() if key in names and key not in _NODE_KEYS}
        draft.inputs = self._inputs(draft, body) if "inputs" in body else None
        return draft

    def _inputs(self, draft: _Draft, body: Mapping[str, object]) -> dict[str, str]:
        inputs = body["inputs"]
        path = (*draft.path, "inputs")
        if not isinstance(inputs, dict):
            self._value(
                path,
                f"node '{draft.id}': 'inputs' is {_shown(inputs)}; expected a mapping of port to node id",
            )
            return {}
        found = {}
        for port, source in inputs.items():
            if isinstance(source, str):
                found[port] = source
            else:
                self._value(
                    (*path, port),
                    f"node '{draft.id}' port '{port}': found {_shown(source)}; expected a node id",
                )
        return found

    # -- options -------------------------------------------------------------------------------------------

    def _options(self, draft: _Draft, defaults: Mapping[str, str]) -> None:
        values: dict[str, object] = {}
        num_before = len(self._problems)
        for name, value in draft.raw.items():
            path = (*draft.path, name)
            reference = referenced_parameter(value)
            where = f"node '{draft.id}': option '{name}'"
            if reference is not None and reference not in defaults:
                hint = did_you_mean(reference, defaults)
                self._value(
                    path, f"{where}: unknown parameter '{reference}'; declared: {listed(defaults)}{hint}"
                )
                continue
            if reference is not None:
                self._used_parameters.add(reference)
                where += f" = parameter '{reference}'"
            try:
                found = value if reference is None else defaults[reference]
                values[name] = convert_option(draft.type, name, found, is_text=reference is not None)
            except ValueError as error:
                self._value(path, f"{where}: {error}")
        for info in msgspec.structs.fields(draft.type.options):
            if info.required and info.name not in draft.raw:
                self._value(
                    draft.path, f"node '{draft.id}' ({draft.type.name}): option '{info.name}' is missing"
                )
        if len(self._problems) == num_before:
            draft.options = draft.type.options(**values)

    def _check_node(self, draft: _Draft, inputs: Mapping[str, str], defaults: Mapping[str, str]) -> None:
        assert draft.options is not None  # wiring starts when every node has its options
        conflict = find_conflict(draft.options, inputs)
        if conflict is not None:
            path = draft.path if conflict.option is None else (*draft.path, conflict.option)
            self._value(path, f"node '{draft.id}' ({draft.type.name}): {conflict.message}")
        if isinstance(draft.options, PromptOptions):
            self._check_templates(draft, draft.options, inputs, defaults)

    def _check_templates(
        self, draft: _Draft, options: PromptOptions, inputs: Mapping[str, str], defaults: Mapping[str, str]
    ) -> None:
        extra = [port for port in inputs if port not in draft.type.port_names]
        known = ["question", *extra, *defaults]
        filled: set[str] = set()
        for name, text in (("instructions", options.instructions), ("template", options.template)):
            try:
                template = parse_template(text or "")
            except TemplateError as error:
                self._value((*draft.path, name), f"node '{draft.id}': {name}: {error}")
                continue
            filled.update(template.slots)
            for slot in dict.fromkeys(template.slots):
                if slot not in known:
                    note = " (passages are placed by the node itself)" if slot == "context" else ""
                    self._value(
                        (*draft.path, name),
                        f"node '{draft.id}': {name}: unknown slot '{slot}'{note}; expected one of {listed(known)}"
                        f"{did_you_mean(slot, known)}",
                    )
        self._used_parameters.update(filled & set(defaults))
        for port in extra:
            if port in defaults:
                self._key(
                    (*draft.path, "inputs", port),
                    f"node '{draft.id}': port '{port}' has the name of a parameter; rename one of them",
                )
            elif port not in filled:
                self._key(
                    (*draft.path, "inputs", port),
                    f"node '{draft.id}': port '{port}' is used in no template; expected {{{{{port}}}}} in one, "
                    f"or one of {listed(draft.type.port_names)}{did_you_mean(port, draft.type.port_names)}",
                )


def _without_defaults(draft: _Draft) -> dict[str, OptionValue]:
    """Keep what the author changed, in the order of the catalogue, so that equal pipelines compare equal."""
    kept = {}
    for info in msgspec.structs.fields(draft.type.options):
        default = [] if info.default_factory is list else info.default
        if info.name in draft.raw and draft.raw[info.name] != default:
            kept[info.name] = draft.raw[info.name]
    return kept
