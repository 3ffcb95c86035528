"""A nats-server that denies everything by default, its users, and actors as processes of their own on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme

from sage_bus import NatsBus
from sage_bus.server_config import ServerTls, render_tls
from sage_bus.server_users import render_users
from sage_bus.testing import NatsServer, free_port
from sage_cli.app import run
from sage_cli.credentials import make_credentials, read_users
from sage_core import BusSettings
from sage_wire.roles import Role

KINDS = ("scheduler", "planner", "llm-worker", "embedding-worker", "operator-worker", "gateway")


@dataclass(frozen=True)
class Certificates:
    """PEM files: a CA, a certificate of the server and one of a client."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path


def make_certificates(folder: Path) -> Certificates:
    """Write a new CA and what it signs into `folder`."""
    authority = trustme.CA()
    found = Certificates(*(folder / name for name in ("ca.pem", "s.pem", "s.key", "c.pem", "c.key")))
    authority.cert_pem.write_to_path(str(found.ca))
    for names, cert, key in (
        (["127.0.0.1", "localhost"], found.server_cert, found.server_key),
        (["sage-actor"], found.client_cert, found.client_key),
    ):
        issued = authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(str(key))
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return found


@asynccontextmanager
async def closing(bus: NatsBus) -> AsyncIterator[NatsBus]:
    """Close the bus at the end of the block, however it ends."""
    try:
        yield bus
    finally:
        await bus.close(1.0)


class GuardedServer:
    """A nats-server with one user per role. `settings(role)` connects as that role."""

    def __init__(self, folder: Path, tls: ServerTls | None = None, ca: Path | None = None) -> None:
        self.folder = folder
        make_credentials(folder)
        self.users = read_users(folder / "users.json")
        config = render_users(self.users)
        if tls is not None:
            config += render_tls(tls)
        self.server = NatsServer(extra_config=config)
        self._ca = ca

    @property
    def url(self) -> str:
        scheme = "tls" if self._ca is not None else "nats"
        return f"{scheme}://127.0.0.1:{self.server.port}"

    @property
    def violations(self) -> list[str]:
        """What the server denied, line by line."""
        return [line for line in self.server.log.splitlines() if "Violation" in line]

    def settings(self, role: Role, *, is_provisioned: bool = True) -> BusSettings:
        return BusSettings(
            url=self.url,
            nkey_seed_file=self.folder / f"{role}.nk",
            tls_ca_file=self._ca,
            is_provisioned=is_provisioned,
            connect_timeout=5.0,
        )

    def environment(self, role: str) -> dict[str, str]:
        found = {
            "SAGE_BUS__URL": self.url,
            "SAGE_BUS__NKEY_SEED_FILE": str(self.folder / f"{role}.nk"),
            "SAGE_BUS__IS_PROVISIONED": "true",
            # The room of a bucket is set aside at once, and a server for tests has 1 GiB.
            "SAGE_GATEWAY__RESPONSES_BYTES": "64MiB",
        }
        return found | ({"SAGE_BUS__TLS_CA_FILE": str(self._ca)} if self._ca is not None else {})

    def replace(self, role: Role) -> None:
        """Give the role a new key and reload the server, as its administrator does."""
        (self.folder / f"{role}.nk").unlink()
        make_credentials(self.folder)
        self.users = read_users(self.folder / "users.json")
        self.server.reload(render_users(self.users))

    def provision(self) -> None:
        """Run `sage nats provision` as a deployment does."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment(Role.PROVISIONER).items():
                patch.setenv(name, value)
            patch.delenv("SAGE_CONFIG", raising=False)
            assert run(["nats", "provision"]) == 0


class Cluster:
    """All six actors as processes, each with the seed of its own role. Use as a context manager."""

    def __init__(self, guarded: GuardedServer, home: Path, settings: dict[str, str]) -> None:
        self.guarded, self.home = guarded, home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        self.environment = (
            {name: value for name, value in os.environ.items() if not name.startswith("SAGE_")}
            | {folder: str(home) for folder in folders}
            | {"HF_HUB_OFFLINE": "1", "SAGE_GATEWAY__PORT": str(self.port)}
            | settings
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = ExitStack()

    def log(self, kind: str) -> str:
        return (self.home / f"{kind}.log").read_text(errors="replace")

    def start(self, kind: str) -> None:
        log = self._logs.enter_context((self.home / f"{kind}.log").open("ab"))
        self._processes[kind] = subprocess.Popen(
            [sys.executable, "-m", "sage_" + kind.replace("-", "_"), "--id", f"{kind}-1"],
            env=self.environment | self.guarded.environment(kind),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def stop(self, kind: str) -> int:
        """End an actor as a service manager does; return its exit status."""
        process = self._processes.pop(kind)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def __enter__(self) -> Cluster:
        for kind in KINDS:
            self.start(kind)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for kind in list(self._processes):
            self.stop(kind)
        self._logs.close()

    def ended(self) -> dict[str, str]:
        """Return the logs of actors that have ended although nobody told them to."""
        return {kind: self.log(kind) for kind, each in self._processes.items() if each.poll() is not None}

    def models(self, headers: dict[str, str]) -> set[str]:
        """Return what the gateway offers; nothing while it does not answer."""
        try:
            answer = httpx.get(f"{self.url}/v1/models", headers=headers, timeout=5)
            return {model["id"] for model in answer.json()["data"]} if answer.status_code == 200 else set()
        except httpx.TransportError:
            return set()
