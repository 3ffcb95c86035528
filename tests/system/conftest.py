"""The stack, up once for all tests; skipped where `make system` has not prepared it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from system.stack import Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    if os.environ.get("SYSTEM_STACK") != "1":
        pytest.skip("needs the images and credentials that `make system` makes")
    with Stack() as running:
        yield running
