"""`sage nats credentials`, `config`, `provision`: the bus of a cluster, as its deployment makes it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage_cli.commands.options import AsJson
from sage_cli.exits import Exit, fail
from sage_cli.terminal import print_json

if TYPE_CHECKING:
    from sage_bus import Provisioned

__all__ = ["config", "credentials", "provision"]


def credentials(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files are kept.")],
    as_json: AsJson = False,
) -> None:
    """Make the users of the bus: DIR/ROLE.nk, a seed for each role, and DIR/users.json, the public keys.

    A seed is a secret: give each process its own role's alone. What is in DIR already is kept.

    Example:  sage nats credentials secrets/nats
    """
    from sage_cli.credentials import USERS_FILE, make_credentials

    made = make_credentials(folder)
    if as_json:
        print_json(
            {
                "changed": any(credential.is_new for credential in made),
                "users_file": str(folder / USERS_FILE),
                "users": {credential.role.value: credential.public_key for credential in made},
                "made": [str(credential.file) for credential in made if credential.is_new],
                "kept": [str(credential.file) for credential in made if not credential.is_new],
            }
        )
        return
    for credential in made:
        print(f"{'made' if credential.is_new else 'kept'} {credential.file}")
    print(f"public keys: {folder / USERS_FILE}")


def config(
    store_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where streams are kept, on the host of the server.")
    ],
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on.", show_default="0.0.0.0 with --users, else 127.0.0.1"),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port for clients.")] = 4222,
    monitor_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="HTTP monitoring, on the loopback.", show_default="none"),
    ] = None,
    server_name: Annotated[str, typer.Option(help="Name in logs and monitoring.")] = "sage",
    max_file_store: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Room for streams, e.g. 20GiB.",
            show_default="70 % of the file system of DIR",
        ),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Public keys by role: only they connect, each with the rights of its role."
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's certificate, PEM, on its host.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key, PEM.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What signs the certificates of clients, PEM.")
    ] = None,
    tls_verify: Annotated[
        bool, typer.Option("--tls-verify", help="Refuse clients without a certificate signed by --tls-ca.")
    ] = False,
) -> None:
    """Print a configuration of nats-server.

    Example:  sage nats config --store-dir /var/lib/nats --users secrets/nats/users.json > nats.conf
    """
    from sage_bus.server_config import ServerTls, render, store_limit
    from sage_cli.credentials import read_users

    if (tls_cert is None) != (tls_key is None):
        fail("--tls-cert and --tls-key are only good together", Exit.USAGE)
    if tls_cert is None and (tls_ca is not None or tls_verify):
        fail("--tls-ca and --tls-verify need --tls-cert and --tls-key", Exit.USAGE)
    tls = (
        ServerTls(tls_cert, tls_key, tls_ca, is_client_checked=tls_verify)
        if tls_cert is not None and tls_key is not None
        else None
    )
    # Without users everybody who reaches the port may do everything.
    listened = host or ("127.0.0.1" if users is None else "0.0.0.0")  # noqa: S104 - closed to all but its users
    text = render(
        port=port,
        store_dir=store_dir,
        host=listened,
        server_name=server_name,
        monitor_port=monitor_port,
        max_file_store=_size("--max-file-store", max_file_store) or store_limit(store_dir),
        users=read_users(users) if users is not None else None,
        tls=tls,
    )
    print(text, end="")


def provision(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file of the cluster.", show_default="$SAGE_CONFIG"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create or update the streams, buckets and consumers that actors use, with the provisioner's rights.

    The server and the seed come from [bus]; sizes and times from [gateway] and [planner]. Nothing is ever deleted.

    Example:  SAGE_BUS__NKEY_SEED_FILE=secrets/nats/provisioner.nk sage nats provision
    """
    done = asyncio.run(_provision(config_file))
    if as_json:
        print_json(
            {
                "changed": done.is_changed,
                "created": done.created,
                "updated": done.updated,
                "unchanged": done.unchanged,
            }
        )
        return
    for verb, names in (("created", done.created), ("updated", done.updated), ("unchanged", done.unchanged)):
        for name in names:
            print(f"{verb} {name}")


async def _provision(config_file: Path | None) -> Provisioned:
    from sage_bus import connect
    from sage_core import load_settings
    from sage_gateway.settings import GatewaySettings
    from sage_planner.settings import PlannerSettings
    from sage_wire.roles import Role

    gateway = load_settings(GatewaySettings, config_file)
    planner = load_settings(PlannerSettings, config_file)
    settings = gateway.bus.model_copy(update={"is_provisioned": False})
    bus = await connect(settings, name="sage-nats-provision", role=Role.PROVISIONER)
    try:
        return await bus.provision(
            responses_bytes=gateway.gateway.responses_bytes, job_ack_wait=planner.planner.job_ack_wait
        )
    finally:
        await bus.close(timeout=1.0)


def _size(option: str, text: str | None) -> int | None:
    from sage_core.units import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except (ValueError, OverflowError) as error:
        fail(f"{option}: {error}", Exit.USAGE)
