"""The bodies of our extensions to answers of pipelines."""

from __future__ import annotations

import msgspec

__all__ = ["SourceBody", "StageTimes"]


class StageTimes(msgspec.Struct, frozen=True):
    """Our extension `sage`: what each stage of a pipeline took, in milliseconds."""

    stages: dict[str, float]


class SourceBody(msgspec.Struct, frozen=True):
    """Our extension: a passage that the answer rests on."""

    source: str
    title: str | None
    position: int
    score: float
    text: str
