"""The keys file: which API keys there are, known by their hashes alone, and what each may do. TOML, for its owner only.

    [keys.website]
    secrets = [{ sha256 = "…", created = 2026-11-22T10:00:00Z, expires = 2026-12-01T00:00:00Z }]
    tenant = "acme"                      # default: the name of the key
    models = ["tiny", "pipeline/*"]      # default: all
    classes = ["normal", "batch"]        # SLO classes, its own default first; default: all
    rpm = 600                            # per minute; default of these three: unlimited
    tpm = 100000
    concurrency = 8
    disabled = false

A key may have several secrets, which is how it is rotated: they share its name, rights and quota.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Final

import msgspec

from sage_core import ConfigurationError
from sage_gateway.access.caller import SLO_CLASSES

__all__ = ["KeyRecord", "KeysFile", "Secret", "check_name", "parse_keys", "read_keys", "render_keys"]

KeysFile = Mapping[str, "KeyRecord"]

_MAX_BYTES: Final = 4 * 2**20
_NAME_RULE: Final = "1 to 64 of A-Z, a-z, 0-9, '_' and '-', not starting with '_' or '-'"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TENANT: Final = r"^[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}$"
_PLACE: Final = re.compile(r" - at `\$(.*)`$")
_OPEN_TO_OTHERS: Final = 0o077

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one secret hashes to, and until when it is accepted."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: datetime | None = None
    expires: datetime | None = None


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key: a table of the file."""

    secrets: tuple[Secret, ...]
    tenant: Annotated[str, msgspec.Meta(pattern=_TENANT)] | None = None
    models: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=512)], ...] | None = None
    classes: tuple[str, ...] | None = None
    rpm: Positive | None = None
    tpm: Positive | None = None
    concurrency: Positive | None = None
    disabled: bool = False


def read_keys(path: Path) -> KeysFile:
    """Return the keys by name.

    Raises FileNotFoundError where there is no file, and ConfigurationError, naming file and line, for one that is
    wrong or that others than its owner may read. What it says never repeats a value, which may be a key.
    """
    try:
        # Of the opened file: between a check of the path and its opening it could be another one.
        with open(path, "rb", opener=_open_at_once) as file:
            found = os.fstat(file.fileno())
            _check_owner(path, found)
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"keys file {path} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"keys file {path} is larger than {_MAX_BYTES} bytes")
    return parse_keys(content, path)


def parse_keys(content: bytes, path: Path) -> KeysFile:
    """Return the keys in the text of a keys file. Raises ConfigurationError naming `path` and the line."""
    try:
        text = content.decode("utf-8")
        document = tomllib.loads(text)
    except UnicodeDecodeError:
        raise ConfigurationError(f"keys file {path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"keys file {path} is not TOML: {error}") from None
    for name in document:
        if name != "keys":
            raise _wrong(
                path, text, "", name, "expected tables [keys.NAME] and nothing else at the top level"
            )
    tables = document.get("keys", {})
    if not isinstance(tables, dict):
        raise _wrong(path, text, "", "keys", "expected tables [keys.NAME]")
    keys: dict[str, KeyRecord] = {}
    owners: dict[str, str] = {}
    for name, table in tables.items():
        if _NAME.fullmatch(name) is None:
            raise _wrong(path, text, name, "", f"the name of a key is {_NAME_RULE}")
        record = keys[name] = _convert(path, text, name, table)
        for secret in record.secrets:
            if secret.sha256 in owners:
                other = owners[secret.sha256]
                raise _wrong(path, text, name, "secrets", f"a secret of {name} is also listed for {other}")
            owners[secret.sha256] = name
    return keys


def check_name(name: str) -> None:
    """Raise ConfigurationError for what cannot name a key."""
    if _NAME.fullmatch(name) is None:
        raise ConfigurationError(f"the name of a key is {name!r}; expected {_NAME_RULE}")


def render_keys(keys: KeysFile) -> str:
    """Return the text of a keys file."""
    parts = [
        "# API keys of SAGE's gateways: hashes alone. Written by `sage keys`, which keeps no comments.\n"
    ]
    for name, record in keys.items():
        lines = [f"[keys.{name}]", "secrets = ["]
        lines += [f"  {{ {', '.join(_pairs(secret))} }}," for secret in record.secrets]
        lines.append("]")
        lines += [pair for pair in _pairs(record) if not pair.startswith("secrets = ")]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _open_at_once(path: str, flags: int) -> int:
    # A pipe without a writer would keep us waiting for one.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"keys file {path} is not a file")
    if found.st_mode & _OPEN_TO_OTHERS:
        raise ConfigurationError(
            f"keys file {path} has mode {stat.S_IMODE(found.st_mode):04o}, so others may use it; run: chmod 600 {path}"
        )
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"keys file {path} belongs to user {found.st_uid}, neither us ({os.geteuid()}) nor root"
        )


def _convert(path: Path, text: str, name: str, table: object) -> KeyRecord:
    try:
        record = msgspec.convert(table, KeyRecord, builtin_types=(datetime, date, time))
    except msgspec.ValidationError as error:
        reason = str(error)
        place = _PLACE.search(reason)
        where = place.group(1) if place is not None else ""
        field = re.split(r"[.\[]", where.lstrip("."), maxsplit=1)[0]
        told = _PLACE.sub("", reason)
        if "sha256" in where:
            told = "expected 64 lower-case hex digits: the SHA-256 of the key, not the key"
        raise _wrong(path, text, name, field, f"{name}{where}: {told}") from None
    if not record.secrets:
        raise _wrong(path, text, name, "secrets", f"{name}.secrets: at least one is needed")
    for secret in record.secrets:
        for moment in (secret.created, secret.expires):
            if moment is not None and moment.tzinfo is None:
                raise _wrong(
                    path, text, name, "secrets", f"{name}.secrets: a time needs a zone, e.g. …T00:00:00Z"
                )
    if record.classes is not None:
        unknown = [each for each in record.classes if each not in SLO_CLASSES]
        if unknown or not record.classes:
            raise _wrong(
                path, text, name, "classes", f"{name}.classes: expected some of {', '.join(SLO_CLASSES)}"
            )
    return record


def _wrong(path: Path, text: str, name: str, field: str, reason: str) -> ConfigurationError:
    line = _line_of(text, name, field)
    return ConfigurationError(f"keys file {path}{f', line {line}' if line else ''}: {reason}")


def _line_of(text: str, name: str, field: str) -> int:
    """Return where `field` of the table of key `name` is written (without a name: of the file), else where the table
    begins, else 0."""
    header = re.compile(rf"""\s*\[\s*keys\s*\.\s*["']?{re.escape(name)}["']?\s*\]""")
    begins = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not name:
            if re.match(rf"\s*\[*\s*{re.escape(field)}\b", line):
                return number
        elif begins and re.match(r"\s*\[\s*keys", line):
            break
        elif begins and field and re.match(rf"\s*{re.escape(field)}\s*=", line):
            return number
        elif header.match(line):
            begins = number
    return begins


def _pairs(struct: Secret | KeyRecord) -> list[str]:
    values = {field: getattr(struct, field) for field in struct.__struct_fields__}
    return [
        f"{name} = {_toml(value)}"
        for name, value in values.items()
        if value is not None and value is not False
    ]


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case str():
            # A TOML basic string is a JSON string, but for DEL, which TOML wants escaped.
            return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
        case _:
            return str(value)
