"""TLS with a CA of one's own: who is not signed by it, on either side, gets nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from guarded_cluster import Certificates, GuardedServer, closing, make_certificates
from sage_bus import BusEvent, connect
from sage_bus.server_config import ServerTls, render_tls
from sage_bus.testing import NatsServer
from sage_core import BusSettings, BusUnavailable, ConfigurationError
from sage_wire.roles import Role

pytestmark = pytest.mark.integration


@pytest.fixture
def encrypted(certificates: Certificates, tmp_path: Path) -> Iterator[GuardedServer]:
    tls = ServerTls(certificates.server_cert, certificates.server_key)
    guarded = GuardedServer(tmp_path / "secrets", tls, certificates.ca)
    with guarded.server:
        yield guarded


@pytest.fixture
def mutual(certificates: Certificates) -> Iterator[NatsServer]:
    tls = ServerTls(
        certificates.server_cert, certificates.server_key, certificates.ca, is_client_checked=True
    )
    with NatsServer(extra_config=render_tls(tls)) as server:
        yield server


def url(server: NatsServer) -> str:
    return f"tls://127.0.0.1:{server.port}"


async def test_a_role_connects_with_its_seed_over_tls_and_again_after_a_restart(
    encrypted: GuardedServer,
) -> None:
    settings = encrypted.settings(Role.GATEWAY, is_provisioned=False)
    async with closing(await connect(settings, name="test", role=Role.GATEWAY)) as bus:
        returned = asyncio.Event()
        bus.on_event(lambda event, _: returned.set() if event is BusEvent.RECONNECTED else None)
        await bus.round_trip()
        assert bus._connection.client.socket.is_encrypted
        encrypted.server.kill()
        encrypted.server.start()
        await asyncio.wait_for(returned.wait(), 10)
        await bus.round_trip()
        assert bus._connection.client.socket.is_encrypted


async def test_a_server_that_another_ca_signed_is_not_spoken_to(
    encrypted: GuardedServer, tmp_path: Path
) -> None:
    other = make_certificates(tmp_path)
    settings = encrypted.settings(Role.GATEWAY).model_copy(
        update={"tls_ca_file": other.ca, "connect_timeout": 0.5}
    )
    with pytest.raises(BusUnavailable, match="certificate verify failed"):
        await connect(settings, name="test", role=Role.GATEWAY)


async def test_without_a_ca_the_server_is_not_trusted(encrypted: GuardedServer) -> None:
    settings = encrypted.settings(Role.GATEWAY).model_copy(
        update={"tls_ca_file": None, "connect_timeout": 0.5}
    )
    with pytest.raises(BusUnavailable, match="certificate verify failed"):
        await connect(settings, name="test", role=Role.GATEWAY)


async def test_a_server_that_checks_clients_lets_in_only_those_with_a_certificate(
    mutual: NatsServer, certificates: Certificates
) -> None:
    known = BusSettings(
        url=url(mutual),
        tls_ca_file=certificates.ca,
        tls_cert_file=certificates.client_cert,
        tls_key_file=certificates.client_key,
    )
    async with closing(await connect(known, name="test")) as bus:
        await bus.round_trip()
    unknown = BusSettings(url=url(mutual), tls_ca_file=certificates.ca, connect_timeout=0.5)
    with pytest.raises(BusUnavailable):
        await connect(unknown, name="test")


@pytest.mark.parametrize(
    ("without", "named"),
    [
        (["tls_ca_file"], r"need bus\.tls_ca_file"),
        (["tls_key_file"], "only good together"),
        (["tls_cert_file"], "only good together"),
    ],
)
async def test_settings_of_tls_that_cannot_be_are_named(
    certificates: Certificates, without: list[str], named: str
) -> None:
    files = {
        "tls_ca_file": certificates.ca,
        "tls_cert_file": certificates.client_cert,
        "tls_key_file": certificates.client_key,
    }
    kept = {name: file for name, file in files.items() if name not in without}
    with pytest.raises(ConfigurationError, match=named):
        await connect(BusSettings(**kept), name="test")  # type: ignore[arg-type]


async def test_a_key_that_is_not_the_certificates_is_named(certificates: Certificates) -> None:
    settings = BusSettings(
        tls_ca_file=certificates.ca,
        tls_cert_file=certificates.client_cert,
        tls_key_file=certificates.server_key,
    )
    with pytest.raises(ConfigurationError, match=r"bus\.tls_cert_file.*cannot use"):
        await connect(settings, name="test")
