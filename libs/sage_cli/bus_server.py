"""The nats-server of one instance: on the loopback, on a free port, closed to everybody without its token."""

from __future__ import annotations

import os
import secrets

from sage_bus.server_config import render, server_binary
from sage_cli import child
from sage_cli.members import BUS
from sage_cli.ports import PortReservations
from sage_core import Paths

__all__ = ["BusServer"]

_HOST = "127.0.0.1"


class BusServer:
    """Port, token and configuration file of one life of an instance; its streams outlive it."""

    def __init__(self, paths: Paths, reserved: PortReservations) -> None:
        self._binary = server_binary()
        self._config = paths.runtime / f"{BUS}.conf"
        port, token = reserved.reserve_any(_HOST), secrets.token_urlsafe(24)
        self.url = f"nats://{token}@{_HOST}:{port}"
        store = paths.data / "jetstream"
        text = (
            render(port=port, store_dir=store, host=_HOST) + f'\nauthorization {{\n  token: "{token}"\n}}\n'
        )
        with open(os.open(self._config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)

    def command(self) -> list[str]:
        """Return how the server is started as a child of this process."""
        return child.command(os.getpid(), [str(self._binary), "--config", str(self._config)])

    def close(self) -> None:
        """Remove the file with the token."""
        self._config.unlink(missing_ok=True)
