"""Tools of a request: what the prompt names, what a grammar enforces, and how calls are read from the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec
from msgspec import Raw

from sage_gateway.decoding import is_null
from sage_gateway.dialects import (
    GUIDED,
    NAMED,
    TOOL_FORMATS,
    FirstCallParser,
    NewCallId,
    Parser,
    new_call_id,
    tool_parser,
)
from sage_gateway.operations.refusal import too_many, wrong
from sage_gateway.operations.schemas import embedded, schema_text
from sage_wire.messages import JsonObject, JsonSchema, ServedModel, Structure, ToolDefinition

__all__ = ["MAX_TOOLS", "NO_TOOLS", "ToolChoice", "ToolPlan", "ToolReader", "plan_tools"]

MAX_TOOLS: Final = 128
MAX_TOOLS_BYTES: Final = 524_288
"""Of all schemas of a request together."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_PARAMETERS: Final = '{"type":"object","properties":{}}'
_MAX_DESCRIPTION: Final = 65_536


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the model may or must call. `allowed`, where not empty, are the only ones; `named` needs one."""

    mode: Literal["none", "auto", "required", "named"] = "auto"
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What tools make of a request: `tools` go into the prompt, `structure` is enforced, `format` reads the answer.

    Without tools, `structure` is the one that was asked for, and `format` is empty.
    """

    tools: list[ToolDefinition] = field(default_factory=list)
    structure: Structure | None = None
    format: str = ""
    names: frozenset[str] = frozenset()
    is_parallel: bool = True

    @property
    def is_named(self) -> bool:
        """True where the request itself names the function: a finish reason is `stop` then, as with OpenAI."""
        return self.format == NAMED

    def parser(self, make_id: NewCallId = new_call_id) -> Parser:
        """Return a new parser of one answer."""
        parser = tool_parser(self.format, self.names, make_id)
        return parser if self.is_parallel or self.format == NAMED else FirstCallParser(parser)


NO_TOOLS: Final = ToolPlan()


class ToolReader:
    """Reads the functions of one request, one by one. What they bring is bounded together, as reading it takes time."""

    def __init__(self, param: str = "tools") -> None:
        self._param = param
        self._num_bytes = 0
        self.tools: list[ToolDefinition] = []

    def add(self, name: str, description: str | None, parameters: Raw, param: str) -> None:
        """Take one function; `parameters` stays the text it is.

        Raises BadRequest and LimitExceeded naming fields below `param`.
        """
        if _NAME.fullmatch(name) is None:
            raise wrong(f"{param}.name", "expected 1 to 64 letters, digits, underscores and dashes")
        if description is not None and len(description) > _MAX_DESCRIPTION:
            raise too_many(f"{param}.description", len(description), _MAX_DESCRIPTION, "characters")
        text = ""
        if not is_null(parameters):
            self._num_bytes += len(bytes(parameters))
            if self._num_bytes > MAX_TOOLS_BYTES:
                raise too_many(self._param, self._num_bytes, MAX_TOOLS_BYTES, "bytes of schemas")
            text = schema_text(parameters, f"{param}.parameters")
        self.tools.append(ToolDefinition(name=name, description=description or "", parameters=text))


def plan_tools(
    tools: Sequence[ToolDefinition],
    choice: ToolChoice,
    served: ServedModel,
    *,
    structure: Structure | None = None,
    is_parallel: bool = True,
    param: str = "tools",
) -> ToolPlan:
    """Return the plan. `structure` is what the answer must look like where it is no call.

    Raises BadRequest for names that are given twice or not at all, and for a model that calls no tools.
    """
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise wrong(param, f"the function '{twice}' is given more than once")
    for name in choice.allowed:
        if name not in names:
            raise wrong("tool_choice", f"there is no tool '{name[:64]}'")
    if not tools and choice.mode in ("required", "named"):
        raise wrong("tool_choice", f"'{choice.mode}' needs tools")
    if not tools or choice.mode == "none":
        return NO_TOOLS if structure is None else ToolPlan(structure=structure)
    if served.tool_format not in TOOL_FORMATS:
        raise wrong(param, f"{served.name} cannot call tools; set tool_choice to 'none' or ask another model")
    if choice.allowed:
        tools = [tool for tool in tools if tool.name in choice.allowed]
    known = frozenset(tool.name for tool in tools)
    if choice.mode == "named":
        (tool,) = tools
        return ToolPlan([tool], JsonSchema(schema=tool.parameters or _NO_PARAMETERS), NAMED, known)
    if choice.mode == "auto" and structure is None:
        return ToolPlan(list(tools), None, served.tool_format, known, is_parallel)
    answer = None if choice.mode == "required" else structure
    schema = _calls_schema(tools, answer, is_parallel=is_parallel)
    return ToolPlan(list(tools), JsonSchema(schema=schema), GUIDED, known, is_parallel)


def _calls_schema(tools: Sequence[ToolDefinition], answer: Structure | None, *, is_parallel: bool) -> str:
    """Return the schema of an array of calls; with `answer`, an object that is one may stand in its place.

    The model itself decides then, by the first character that it writes.
    """
    place = "" if answer is None else "/anyOf/0"
    calls = ",".join(
        _call_schema(tool, f"{place}/items/anyOf/{index}/properties/parameters")
        for index, tool in enumerate(tools)
    )
    limit = "" if is_parallel else ',"maxItems":1'
    array = f'{{"type":"array","minItems":1{limit},"items":{{"anyOf":[{calls}]}}}}'
    match answer:
        case None:
            return array
        case JsonSchema(schema=schema):
            if msgspec.json.decode(schema).get("type") == "array":
                raise wrong(
                    "response_format", "with tools the answer must be an object: an array would be calls"
                )
            return f'{{"anyOf":[{array},{embedded(schema, "/anyOf/1")}]}}'
        case JsonObject():
            return f'{{"anyOf":[{array},{{"type":"object"}}]}}'
    raise wrong("structured_outputs", "tools go with JSON alone; set tool_choice to 'none' or 'required'")


def _call_schema(tool: ToolDefinition, place: str) -> str:
    name = msgspec.json.encode(tool.name).decode()
    parameters = embedded(tool.parameters or _NO_PARAMETERS, place)
    return (
        f'{{"type":"object","properties":{{"name":{{"type":"string","enum":[{name}]}},"parameters":{parameters}}},'
        '"required":["name","parameters"],"additionalProperties":false}'
    )
