"""YAML text to plain data with the place of every key and value, under limits, and back.

Only mappings, sequences and scalars of JSON's types are read. Anchors, aliases, tags, merge keys, several
documents, duplicate keys and deep nesting are refused before anything is built (an alias bomb costs nothing).
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import yaml

from sage_pipeline.problems import Location, PipelineError, Problem

__all__ = ["MAX_YAML_BYTES", "Locations", "Path", "dump_yaml", "load_yaml"]

MAX_YAML_BYTES: Final = 64 * 1024
MAX_YAML_DEPTH: Final = 8
MAX_YAML_ITEMS: Final = 4096

Path = tuple[str | int, ...]
_SCALARS = {"tag:yaml.org,2002:" + name for name in ("str", "int", "float", "bool", "null")}


class Locations:
    """Where the key and the value at a path stand; a path that is not there gives its nearest parent's place."""

    def __init__(self) -> None:
        self._keys: dict[Path, Location] = {}
        self._values: dict[Path, Location] = {}

    def add(self, path: Path, key: Location | None, value: Location) -> None:
        """Record a path. `key` is None for items of a sequence."""
        if key is not None:
            self._keys[path] = key
        self._values[path] = value

    def key(self, path: Path) -> Location | None:
        """Return where the key of `path` stands; None without a file."""
        return self._keys.get(path) or self.value(path)

    def value(self, path: Path) -> Location | None:
        """Return where the value at `path` stands; None without a file."""
        while path not in self._values:
            if not path:
                return None
            path = path[:-1]
        return self._values[path]


def load_yaml(text: str | bytes, file: str) -> tuple[object, Locations]:
    """Return the data in `text` and its locations. Raises PipelineError; `file` is named in every problem."""
    text = _decoded(text, file)
    locations = Locations()
    try:
        _check_events(text, file)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(part for part in (error.context, error.problem) if part)
        raise PipelineError([Problem(f"not YAML: {reason}", _at(file, mark))]) from None
    except yaml.YAMLError as error:
        raise PipelineError(
            [Problem(f"not YAML: {error}".replace("\n", " "), Location(file, 1, 1))]
        ) from None
    if root is None:
        raise PipelineError([Problem("the file is empty; expected a pipeline", Location(file, 1, 1))])
    problems: list[Problem] = []
    data = _convert(root, file, (), None, locations, problems)
    if problems:
        raise PipelineError(problems)
    return data, locations


def dump_yaml(data: object) -> str:
    """Return `data` as YAML in the order given; text of several lines becomes a block."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _decoded(text: str | bytes, file: str) -> str:
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_YAML_BYTES:
        raise PipelineError(
            [
                Problem(
                    f"the file has {size} bytes; at most {MAX_YAML_BYTES} are allowed", Location(file, 1, 1)
                )
            ]
        )
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        column = error.start - (text.rfind(b"\n", 0, error.start) + 1) + 1
        raise PipelineError([Problem("not UTF-8", Location(file, line, column))]) from None


def _at(file: str, mark: _Mark | None) -> Location:
    return Location(file, mark.line + 1, mark.column + 1) if mark is not None else Location(file, 1, 1)


class _Mark(Protocol):
    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


def _check_events(text: str, file: str) -> None:
    depth = num_items = num_documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = _at(file, event.start_mark)
        match event:
            case yaml.AliasEvent():
                raise PipelineError([Problem("aliases are not allowed; write the value out", place)])
            case yaml.DocumentStartEvent():
                num_documents += 1
                if num_documents > 1:
                    raise PipelineError([Problem("a second document; expected one pipeline per file", place)])
            case yaml.NodeEvent():
                if event.anchor is not None:
                    raise PipelineError([Problem(f"anchor '&{event.anchor}' is not allowed", place)])
                tag = getattr(event, "tag", None)
                if tag is not None:
                    raise PipelineError([Problem(f"tag '{tag}' is not allowed", place)])
                num_items += 1
                if num_items > MAX_YAML_ITEMS:
                    raise PipelineError([Problem(f"more than {MAX_YAML_ITEMS} values in one file", place)])
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_YAML_DEPTH:
                raise PipelineError([Problem(f"nested deeper than {MAX_YAML_DEPTH} levels", place)])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _convert(
    node: yaml.Node,
    file: str,
    path: Path,
    key: Location | None,
    locations: Locations,
    problems: list[Problem],
) -> object:
    locations.add(path, key, _at(file, node.start_mark))
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node, file, path, locations, problems)
    if isinstance(node, yaml.SequenceNode):
        return [
            _convert(item, file, (*path, index), None, locations, problems)
            for index, item in enumerate(node.value)
        ]
    return _convert_scalar(node, file, problems)


def _convert_mapping(
    node: yaml.MappingNode, file: str, path: Path, locations: Locations, problems: list[Problem]
) -> dict[str, object]:
    found: dict[str, object] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        place = _at(file, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem("a key that is not text; expected a name", place))
            continue
        name = str(key_node.value)
        if name in found:
            problems.append(Problem(f"key '{name}' is given twice, first in line {lines[name]}", place))
            continue
        lines[name] = place.line
        found[name] = _convert(value_node, file, (*path, name), place, locations, problems)
    return found


def _convert_scalar(node: yaml.Node, file: str, problems: list[Problem]) -> object:
    place = _at(file, node.start_mark)
    if node.tag not in _SCALARS:
        kind = node.tag.rsplit(":", 1)[-1]
        problems.append(Problem(f"found a {kind}; put it in quotes to make it text", place))
        return None
    constructor = yaml.constructor.SafeConstructor()
    try:
        value: object = constructor.construct_object(node)
    except (ValueError, yaml.YAMLError):
        problems.append(Problem("a number that cannot be read", place))
        return None
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(f"found {value}; expected a finite number", place))
        return None
    return value


_NEXT_LINE: Final = "\x85"
"""PyYAML writes it as it is but reads it as a line break, and folds it. In double quotes it is escaped."""


class _Dumper(yaml.SafeDumper):
    """Block style for text of several lines, and list items indented under their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        super().increase_indent(flow, indentless=False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    if _NEXT_LINE in text:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # noqa: ARG005
