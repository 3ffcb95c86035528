"""How the accelerator that an engine computes on is named, so that a scheduler sees which engines share one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

__all__ = ["CPU", "device_name", "is_gpu"]

CPU: Final = "cpu"


def device_name(torch_device: str, environ: Mapping[str, str] | None = None) -> str:
    """Return the name on this host of what torch calls `torch_device` (cpu, cuda, cuda:1, mps …).

    Processes count the GPUs they see from 0; CUDA_VISIBLE_DEVICES says which ones those are.
    """
    kind, _, index = torch_device.partition(":")
    if kind != "cuda":
        return torch_device
    number = int(index) if index.isdecimal() else 0
    env = os.environ if environ is None else environ
    visible = [name.strip() for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return f"cuda:{visible[number] if number < len(visible) else number}"


def is_gpu(device: str) -> bool:
    """True for every device but the CPU and none at all."""
    return bool(device) and device != CPU
