"""Every name of a span or an attribute is in `semconv`, is used, and is documented; standard ones are spelled right."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    exception_attributes,
    gen_ai_attributes,
    host_attributes,
    http_attributes,
    messaging_attributes,
    process_attributes,
    service_attributes,
    url_attributes,
)
from opentelemetry.semconv.schemas import Schemas

from sage_telemetry import semconv

ROOT = Path(__file__).parents[3]
SEMCONV = ROOT / "libs" / "sage_telemetry" / "semconv.py"
SAMPLES = ROOT / "libs" / "sage_wire" / "samples.py"
"""Messages as they were once sent, with the names of their time."""
SOURCES = sorted(
    path
    for folder in ("libs", "services")
    for path in (ROOT / folder).rglob("*.py")
    if path not in (SEMCONV, SAMPLES)
)
NAMES = {name: value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}
ATTRIBUTES = {value for name, value in NAMES.items() if "." in value and name != "SCHEMA_URL"}
STANDARD = (
    error_attributes, exception_attributes, gen_ai_attributes, host_attributes, http_attributes,
    messaging_attributes, process_attributes, service_attributes, url_attributes,
)  # fmt: skip
FOREIGN = re.compile(r"(gen_ai|messaging|service|exception|otel)\.[a-z_.]+")


def literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each name that code spells out: attributes anywhere, spans and events where they are made."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in ATTRIBUTES or FOREIGN.fullmatch(node.value):
                yield node.lineno, node.value
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in ("start_span", "record_span", "event", "add_event", "set_attribute"):
                start = first.values[0] if isinstance(first, ast.JoinedStr) else first
                if isinstance(start, ast.Constant) and isinstance(start.value, str):
                    yield node.lineno, start.value


def test_names_are_spelled_in_semconv_alone() -> None:
    assert len(SOURCES) > 200
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in literals(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        'start_span("made up", parent=p)',
        'start_span(f"made {up}", parent=p)',
        'tracing.record_span("made up", parent=p)',
        'handle.event("made up")',
        'handle.set("sage.pool", 1)',
        '{"gen_ai.made.up": 1}',
    ],
)
def test_the_search_finds_a_name_that_is_spelled_out(code: str) -> None:
    assert len(list(literals(ast.parse(code)))) == 1


def test_no_two_names_mean_the_same() -> None:
    assert len(set(NAMES.values())) == len(NAMES)


def test_every_name_is_used() -> None:
    text = "\n".join(path.read_text() for path in SOURCES)
    assert [name for name in NAMES if re.search(rf"\bsemconv\.{name}\b", text) is None] == []


def test_names_of_the_standard_are_spelled_as_there_and_the_others_are_ours() -> None:
    standard = {value for module in STANDARD for value in vars(module).values() if isinstance(value, str)}
    assert {name for name in ATTRIBUTES if not name.startswith("sage.")} <= standard
    assert NAMES["SCHEMA_URL"] in {schema.value for schema in Schemas}
    operations = {member.value for member in gen_ai_attributes.GenAiOperationNameValues}
    assert {
        semconv.OPERATION_CHAT,
        semconv.OPERATION_TEXT_COMPLETION,
        semconv.OPERATION_EMBEDDINGS,
        semconv.OPERATION_RETRIEVAL,
        semconv.OPERATION_INVOKE_WORKFLOW,
    } <= operations
    types = {member.value for member in messaging_attributes.MessagingOperationTypeValues}
    assert {semconv.OPERATION_TYPE_SEND, semconv.OPERATION_TYPE_PROCESS} <= types
    systems = {member.value for member in messaging_attributes.MessagingSystemValues}
    assert semconv.MESSAGING_SYSTEM_NATS not in systems, (
        "NATS has become a standard value: see what it implies"
    )


def test_the_manual_lists_every_attribute_and_no_other() -> None:
    _, _, table = (ROOT / "docs" / "tracing.md").read_text().partition("## Attributes")
    lines = table.splitlines()
    listed = [
        name
        for line in lines
        if line.startswith("| `")
        for name in re.findall(r"`([a-z_.]+)`", line.split("|")[1])
    ]
    assert sorted(listed) == sorted(ATTRIBUTES)
