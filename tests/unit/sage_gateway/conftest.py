from __future__ import annotations

from pathlib import Path

import pytest

from gateway_driver import HELLO, Gateway


@pytest.fixture(autouse=True)
def no_keys_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have keys of his own, which would close every gateway here."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
async def gateway() -> Gateway:
    """A gateway whose every chat is answered with `HELLO`."""
    made = Gateway()
    made.port.answer_with(*HELLO)
    return made
