from __future__ import annotations

import pytest

from gateway_driver import HELLO, Gateway


@pytest.fixture
async def gateway() -> Gateway:
    """A gateway whose every chat is answered with `HELLO`."""
    made = Gateway()
    made.port.answer_with(*HELLO)
    return made
