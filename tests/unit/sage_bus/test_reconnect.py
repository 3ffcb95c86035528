"""How a lost connection is sought again: by chance, so that a hundred clients do not return at once."""

from __future__ import annotations

from urllib.parse import urlparse

import pytest
from nats.aio.client import Server

from sage_bus.connection import Connection
from sage_bus.nats_client import NatsClient
from sage_bus.requests import ReplyInbox


@pytest.fixture
def connection() -> Connection:
    return Connection(
        NatsClient(requires_tls=False),
        inbox=ReplyInbox("_INBOX_test"),
        ping_interval=2.0,
        max_messages=64,
        max_bytes=1024,
    )


def server(port: int, reconnects: int = 0) -> Server:
    return Server(uri=urlparse(f"nats://127.0.0.1:{port}"), reconnects=reconnects)


def test_delays_are_spread_and_bounded(connection):
    first = [connection._next_server([server(1)], {})[1] for _ in range(100)]
    later = [connection._next_server([server(1, 50)], {})[1] for _ in range(100)]
    assert len(set(first)) > 90
    assert min(first) > 0
    assert max(first) <= 0.2
    assert max(later) - min(later) > 0.5
    assert max(later) <= 2.0


def test_the_server_tried_least_is_next(connection):
    chosen, _ = connection._next_server([server(1, 3), server(2, 1), server(3, 2)], {})
    assert chosen is not None
    assert chosen.uri.port == 2
