"""`--help` of a service: what it is, its options, and every setting with its variable, default and meaning."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sage_core import ServiceSettings
from sage_core.units import parse_bytes, parse_duration

__all__ = ["SettingLine", "build_parser", "describe_settings", "setting_lines"]

WIDTH = 110


@dataclass(frozen=True, slots=True)
class SettingLine:
    """One setting: its key in the file, its environment variable, its default as written, its meaning."""

    key: str
    variable: str
    default: str
    description: str


def setting_lines(settings_type: type[BaseModel]) -> list[SettingLine]:
    """Return every setting of `settings_type`, tables flattened, in the order of declaration."""
    return list(_walk(settings_type, ()))


def describe_settings(settings_type: type[ServiceSettings]) -> str:
    """Return the table of settings as text, one table of the file after another."""
    lines = [
        "Settings: environment over the file of --config over defaults. In the file, [table] then key = value."
    ]
    table = None
    own_first = sorted(
        setting_lines(settings_type), key=lambda line: line.key.split(".")[0] in ServiceSettings.model_fields
    )
    for line in own_first:
        head = line.key.rpartition(".")[0]
        if head != table:
            lines += ["", f"  [{head}]" if head else "  (top of the file)"]
            table = head
        name = line.key.rpartition(".")[2]
        lines.append(f"    {name:<24} {line.variable:<44} {line.default}")
        lines += textwrap.wrap(line.description, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def build_parser(
    prog: str, description: str, settings_type: type[ServiceSettings]
) -> argparse.ArgumentParser:
    """Return the parser of a service's command line; its help teaches the settings."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=describe_settings(settings_type)
        + "\n\nExit codes: 0 clean, 1 crashed, 2 configuration, 3 NATS unreachable or closed for good.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="settings file (TOML); default: $SAGE_CONFIG, else none"
    )
    parser.add_argument(
        "--id", metavar="ID", help="name of this actor, [A-Za-z0-9_-]; default: a new one per start"
    )
    parser.add_argument(
        "--parent-pid", metavar="PID", type=int, help="be killed when this process, our parent, ends"
    )
    return parser


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[SettingLine]:
    for name, info in model.model_fields.items():
        keys = (*path, name)
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _walk(inner, keys)
        else:
            variable = "SAGE_" + "__".join(keys).upper()
            yield SettingLine(".".join(keys), variable, _default(info), info.description or "")


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "(required)"
    if value is None:
        return "(unset)"
    for rule in info.metadata:
        if isinstance(rule, BeforeValidator) and rule.func is parse_bytes:
            return _in_units(value, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)), "")
        if isinstance(rule, BeforeValidator) and rule.func is parse_duration:
            return _in_units(value, (("h", 3600), ("m", 60), ("s", 1), ("ms", 1e-3)), "s")
    return str(value)


def _in_units(value: float, units: tuple[tuple[str, float], ...], bare: str) -> str:
    """Write `value` as settings may write it, in the largest unit that leaves a whole number."""
    for unit, size in units:
        if value >= size and round(value / size, 9).is_integer():
            return f"{value / size:.0f}{unit}"
    return f"{value:g}{bare}"
