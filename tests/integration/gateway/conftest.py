from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop that gateways run on: its transports differ from asyncio's in what they promise."""
    return {"uvloop": uvloop.new_event_loop}
