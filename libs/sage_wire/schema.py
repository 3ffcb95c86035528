"""Generates proto/: JSON Schemas, the AsyncAPI document, golden bytes. `python -m sage_wire.schema [--check]`.

Schemas and document follow the code. Golden bytes do not: they are what a release wrote, so a file that exists is
never rewritten, and a sample that no longer gives its bytes is an error here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from sage_wire import messages
from sage_wire.channels import CHANNELS, PARAMETERS, Channel
from sage_wire.codec import encode
from sage_wire.messages import Message, WireError, Work
from sage_wire.samples import SAMPLES

__all__ = ["asyncapi_document", "main", "message_types", "schemas"]

SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
CONTENT_TYPE: Final = "application/vnd.msgpack"

Json = dict[str, Any]


def message_types() -> list[type[Message]]:
    """Return every message, sorted by name."""
    found = [getattr(messages, name) for name in messages.__all__]
    return sorted(
        (
            kind
            for kind in found
            if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
        ),
        key=lambda kind: kind.__name__,
    )


def schemas() -> dict[str, Json]:
    """Return a self-contained JSON Schema per message, by name."""
    return {kind.__name__: _schema(kind) for kind in message_types()}


def asyncapi_document() -> Json:
    """Return the AsyncAPI 3.0 document of all subjects and messages."""
    used = {channel.message for channel in CHANNELS} | {WireError}
    used |= {channel.reply for channel in CHANNELS if channel.reply is not None}
    names = sorted(kind.__name__ for kind in used)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "SAGE",
            "version": "1",
            "description": "Messages between the actors of a SAGE cluster, over NATS. Bodies are MessagePack maps; "
            "unknown fields are ignored, absent fields have the default of the schema. A client needs only NATS "
            "and MessagePack: publish on `submit`, and read `frames`.",
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": {channel.name: _channel(channel) for channel in CHANNELS} | {"reply": _reply_channel()},
        "operations": {channel.name: _operation(channel) for channel in CHANNELS},
        "components": {
            "messages": {name: _message(name) for name in names},
            "schemas": {"Headers": _headers()},
        },
    }


def main(argv: list[str] | None = None) -> int:
    """Write or check; return 1 where something is stale or a golden file no longer holds."""
    parser = argparse.ArgumentParser(prog="python -m sage_wire.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 naming what is stale")
    parser.add_argument("--output", type=Path, default=Path("proto"), help="folder (default: proto)")
    options = parser.parse_args(argv)
    generated = _generated()
    problems = _golden_problems(options.output)
    if options.check:
        problems += _stale(options.output, generated | _golden())
    else:
        _write(options.output, generated)
        _write(options.output, _golden(), is_kept=True)
        problems += _stale(options.output, generated)
    for problem in problems:
        print(problem, file=sys.stderr)  # noqa: T201 - a command's output
    return 1 if problems else 0


def _schema(kind: type[Message]) -> Json:
    _, components = msgspec.json.schema_components([_describable(kind)], ref_template="#/$defs/{name}")
    (work,), work_components = msgspec.json.schema_components([Work], ref_template="#/$defs/{name}")
    body: Json = components.pop(kind.__name__)
    if "work" in body.get("properties", {}):
        # The field is raw for whoever passes it on; what it holds is known all the same.
        body["properties"]["work"] = work
        components = work_components | components
    schema = {"$schema": SCHEMA_DIALECT, **body}
    if _mentions(body, kind.__name__):
        raise TypeError(f"{kind.__name__} contains itself; give its schema a definition of its own")
    if components:
        schema["$defs"] = dict(sorted(components.items()))
    tidied: Json = _tidied(schema)
    return tidied


def _describable(kind: type[Message]) -> type:
    """Return `kind`, or a copy in which raw fields with a default are optional: msgspec cannot describe those."""
    fields = msgspec.structs.fields(kind)
    if not any(isinstance(field.default, msgspec.Raw) for field in fields):
        return kind
    copied: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for field in fields:
        if isinstance(field.default, msgspec.Raw):
            copied.append((field.name, Any, msgspec.field(default_factory=object)))
        elif field.default is not msgspec.NODEFAULT:
            copied.append((field.name, field.type, msgspec.field(default=field.default)))
        elif field.default_factory is not msgspec.NODEFAULT:
            copied.append((field.name, field.type, msgspec.field(default_factory=field.default_factory)))
        else:
            copied.append((field.name, field.type))
    return msgspec.defstruct(kind.__name__, copied, namespace={"__doc__": kind.__doc__}, kw_only=True)


def _mentions(node: Any, name: str) -> bool:
    return f'"#/$defs/{name}"' in json.dumps(node)


def _tidied(node: Any) -> Any:
    """Say what JSON Schema cannot: bytes are MessagePack `bin`. Join the lines of docstrings."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidied = {key: _tidied(value) for key, value in node.items()}
    if tidied.get("contentEncoding") == "base64":
        tidied["description"] = "MessagePack bin; base64 where written as JSON."
    description = tidied.get("description")
    if isinstance(description, str):
        tidied["description"] = re.sub(r"\s+", " ", description)
    return tidied


def _channel(channel: Channel) -> Json:
    names = re.findall(r"\{(\w+)\}", channel.address)
    described: Json = {"address": channel.address, "description": channel.description}
    if names:
        described["parameters"] = {name: {"description": PARAMETERS[name]} for name in names}
    name = channel.message.__name__
    described["messages"] = {name: {"$ref": f"#/components/messages/{name}"}}
    return described


def _reply_channel() -> Json:
    replies = sorted({channel.reply.__name__ for channel in CHANNELS if channel.reply} | {WireError.__name__})
    return {
        "address": None,
        "description": "The inbox of whoever asked: the NATS reply subject.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in replies},
    }


def _operation(channel: Channel) -> Json:
    described: Json = {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": f"{channel.sender} → {channel.receiver}",
        "messages": [{"$ref": f"#/channels/{channel.name}/messages/{channel.message.__name__}"}],
    }
    if channel.reply is not None:
        described["reply"] = {
            "channel": {"$ref": "#/channels/reply"},
            "messages": [
                {"$ref": f"#/channels/reply/messages/{kind.__name__}"} for kind in (channel.reply, WireError)
            ],
        }
    return described


def _message(name: str) -> Json:
    return {
        "name": name,
        "contentType": CONTENT_TYPE,
        "headers": {"$ref": "#/components/schemas/Headers"},
        "payload": {"$ref": f"./schemas/{name}.json"},
    }


def _headers() -> Json:
    described = {
        "Sage-Call": "Id of the call, [0-9a-z-]{1,64}.",
        "Sage-Budget-Ms": "Milliseconds that are left of the caller's patience, decimal.",
        "Sage-Cancel": "With an empty body: the caller no longer waits for the call of this id.",
        "Sage-Error": "Present on a reply whose body is a WireError.",
        "traceparent": "W3C trace context.",
    }
    properties = {name: {"type": "string", "description": text} for name, text in described.items()}
    return {"type": "object", "properties": properties}


def _generated() -> dict[str, bytes]:
    files = {f"schemas/{name}.json": _json(schema) for name, schema in schemas().items()}
    return files | {"asyncapi.json": _json(asyncapi_document())}


def _golden() -> dict[str, bytes]:
    return {f"golden/{name}.msgpack": encode(sample) for name, sample in SAMPLES.items()}


def _json(document: Json) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _write(folder: Path, files: dict[str, bytes], *, is_kept: bool = False) -> None:
    for name, content in files.items():
        path = folder / name
        if is_kept and path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def _stale(folder: Path, files: dict[str, bytes]) -> list[str]:
    problems = []
    for name, content in sorted(files.items()):
        path = folder / name
        if not path.exists():
            problems.append(f"{path}: missing; run python -m sage_wire.schema")
        elif path.read_bytes() != content and not name.startswith("golden/"):
            problems.append(f"{path}: stale; run python -m sage_wire.schema")
    known = {folder / name for name in files}
    present = sorted((folder / "schemas").glob("*.json"))
    return problems + [f"{path}: no such message; delete it" for path in present if path not in known]


def _golden_problems(folder: Path) -> list[str]:
    """Compare golden files with their samples; a released sample keeps its bytes for ever."""
    problems = []
    for path in sorted((folder / "golden").glob("*.msgpack")):
        sample = SAMPLES.get(path.stem)
        if sample is None:
            problems.append(f"{path}: its sample was removed; released bytes must stay readable")
        elif encode(sample) != path.read_bytes():
            problems.append(
                f"{path}: {type(sample).__name__} is written differently now; restore the message and its "
                f"sample, and add a further sample for what is new"
            )
    return problems


if __name__ == "__main__":
    raise SystemExit(main())
