"""`sage keys create`, `list`, `rotate`, `revoke`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage_cli.commands.options import AsJson
from sage_cli.exits import Exit, fail
from sage_cli.terminal import err, out, print_json

if TYPE_CHECKING:
    from sage_gateway.access.keys_file import KeyRecord

__all__ = ["create", "list_keys", "revoke", "rotate"]

_SHOWN_DIGITS = 8

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, as in `sage keys list`.")]
KeysPath = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="Keys file.",
        show_default="[gateway] keys_file, or keys.toml in the configuration folder",
    ),
]


def create(
    name: Annotated[str, typer.Option(help="What it is called in lists, logs and quotas.")],
    tenant: Annotated[
        str | None,
        typer.Option(help="Who is served, for fair shares between tenants.", show_default="the name"),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|GLOB", help="Model it may ask for; may be repeated.", show_default="all"),
    ] = None,
    slo_class: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="SLO class it may ask for: interactive, normal or batch; may be repeated, its default first.",
            show_default="all",
        ),
    ] = None,
    rpm: Annotated[
        int | None, typer.Option(min=1, help="Requests per minute.", show_default="unlimited")
    ] = None,
    tpm: Annotated[
        int | None, typer.Option(min=1, help="Tokens per minute, read and written.", show_default="unlimited")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests open at once.", show_default="unlimited")
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="How long it is good, e.g. 90d.", show_default="no end"),
    ] = None,
    file: KeysPath = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, once: only its hash is kept.

    Running gateways know it within a second. From the first key on, every request needs one.

    Example:  sage keys create --name website --models 'pipeline/*' --rpm 600
    """
    from sage_cli.key_file_changes import create_key
    from sage_gateway.access.keys_file import KeyRecord

    path = _path(file)
    rights = KeyRecord(
        (),
        tenant=tenant,
        models=tuple(models) if models else None,
        classes=tuple(slo_class) if slo_class else None,
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
    )
    lifetime = None if expires is None else _duration("--expires", expires)
    key = create_key(path, name, rights, datetime.now(UTC), lifetime)
    _print_key(name, key, path, as_json=as_json)


def rotate(
    name: KeyName,
    overlap: Annotated[
        str,
        typer.Option(metavar="DURATION", help="How long the secrets it has go on being good; 0: not at all."),
    ] = "24h",
    file: KeysPath = None,
    as_json: AsJson = False,
) -> None:
    """Print a new secret for a key; the old one goes on for a while.

    Both share the key's rights and quota meanwhile.

    Example:  sage keys rotate website --overlap 2h
    """
    from sage_cli.key_file_changes import rotate_key

    path = _path(file)
    key = rotate_key(path, name, datetime.now(UTC), _duration("--overlap", overlap))
    _print_key(name, key, path, as_json=as_json)


def revoke(
    name: KeyName,
    forget: Annotated[
        bool, typer.Option("--forget", help="Take it out of the file, so that its name is free again.")
    ] = False,
    file: KeysPath = None,
) -> None:
    """End a key: gateways refuse it within a second.

    Example:  sage keys revoke website
    """
    from sage_cli.key_file_changes import revoke_key

    path = _path(file)
    revoke_key(path, name, is_forgotten=forget)
    err.print(f"{name} is revoked ({path})", markup=False)


def list_keys(file: KeysPath = None, as_json: AsJson = False) -> None:
    """Show all keys with their rights; secrets by the first digits of their hashes.

    Example:  sage keys list --json
    """
    from rich.table import Table

    from sage_cli.key_file_changes import key_state, known_keys

    path, now = _path(file), datetime.now(UTC)
    keys = known_keys(path)
    if as_json:
        print_json([_facts(name, record, key_state(record, now)) for name, record in keys.items()])
        return
    if not keys:
        err.print(f"no keys in {path}", markup=False)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NAME", "TENANT", "STATE", "MODELS", "CLASSES", "RPM", "TPM", "OPEN", "SECRETS"):
        table.add_column(column)
    for name, record in keys.items():
        table.add_row(
            name,
            record.tenant or name,
            key_state(record, now),
            " ".join(record.models) if record.models is not None else "all",
            " ".join(record.classes or ("all",)),
            *(str(limit or "-") for limit in (record.rpm, record.tpm, record.concurrency)),
            ", ".join(
                secret.sha256[:_SHOWN_DIGITS]
                + (f" until {secret.expires:%Y-%m-%d %H:%M}" if secret.expires is not None else "")
                for secret in record.secrets
            ),
        )
    out.print(table)


def _facts(name: str, record: KeyRecord, state: str) -> dict[str, object]:
    return {
        "name": name,
        "tenant": record.tenant or name,
        "state": state,
        "models": record.models,
        "classes": record.classes,
        "rpm": record.rpm,
        "tpm": record.tpm,
        "concurrency": record.concurrency,
        "secrets": [
            {"sha256": secret.sha256, "created": secret.created, "expires": secret.expires}
            for secret in record.secrets
        ],
    }


def _print_key(name: str, key: str, path: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key": key, "file": str(path)})
    else:
        print(key, flush=True)
        err.print(f"key of {name}, shown this once; its hash is in {path}", markup=False)


def _path(file: Path | None) -> Path:
    if file is not None:
        return file
    from sage_core import load_settings
    from sage_gateway.settings import GatewaySettings

    return load_settings(GatewaySettings).gateway.keys_path


def _duration(option: str, text: str) -> timedelta:
    from sage_core.units import parse_duration

    try:
        return timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as error:
        fail(f"{option}: {error}", Exit.USAGE)
