"""The JSON Schema of a pipeline file, generated from the catalogue, for editors and for other languages."""

from __future__ import annotations

from typing import Any

import msgspec

from sage_pipeline.graph import MAX_NODES
from sage_pipeline.nodes import CATALOGUE, NodeType

__all__ = ["json_schema"]

_IDENTIFIER = {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,31}$"}
_REFERENCE = {"type": "string", "pattern": r"^\$\{\s*[a-z][a-z0-9_]{0,31}\s*\}$"}


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12). It describes the shape; wiring and types are checked by `parse_pipeline`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://sage.invalid/schemas/pipeline.json",
        "title": "SAGE pipeline",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "nodes"],
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"},
            "description": {"type": "string", "maxLength": 4096},
            "parameters": {
                "type": "object",
                "maxProperties": 32,
                "propertyNames": _IDENTIFIER,
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["default"],
                    "properties": {
                        "default": {"type": ["string", "number"]},
                        "description": {"type": "string", "maxLength": 4096},
                    },
                },
            },
            "nodes": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_NODES,
                "items": {
                    "type": "object",
                    "required": ["type"],
                    "oneOf": [{"$ref": f"#/$defs/{name}"} for name in CATALOGUE],
                },
            },
            "output": _IDENTIFIER,
        },
        "$defs": {name: _node(node_type) for name, node_type in CATALOGUE.items()},
    }


def _node(node_type: NodeType) -> dict[str, Any]:
    properties: dict[str, Any] = {"id": _IDENTIFIER, "type": {"const": node_type.name}}
    required = ["type"]
    for info in msgspec.structs.fields(node_type.options):
        schema = msgspec.json.schema(info.type)
        description = schema.pop("description", None)
        properties[info.name] = {"anyOf": [schema, _REFERENCE]}
        if description is not None:
            properties[info.name]["description"] = description
        if info.required:
            required.append(info.name)
        elif info.default is not None and info.default is not msgspec.NODEFAULT:
            properties[info.name]["default"] = info.default
    if node_type.ports:
        properties["inputs"] = {
            "type": "object",
            "properties": {
                port.name: _IDENTIFIER | {"description": f"A node that yields {' or '.join(port.accepts)}."}
                for port in node_type.ports
            },
            "required": [port.name for port in node_type.ports if port.is_required],
            "additionalProperties": _IDENTIFIER if node_type.extra_accepts else False,
        }
    return {
        "description": node_type.summary,
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }
