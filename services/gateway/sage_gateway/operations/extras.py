"""Our extensions to answers of pipelines: the passages they rest on, and what each stage took."""

from __future__ import annotations

from collections.abc import Sequence

from sage_gateway.operations.extras_body import SourceBody, StageTimes
from sage_wire.messages import Annotated, Hit

__all__ = ["Extras", "source_bodies"]


class Extras:
    """What a pipeline says beside its text, gathered from its `Annotated` events."""

    def __init__(self) -> None:
        self.sources: list[Hit] = []
        self._stages: dict[str, float] = {}

    def add(self, event: Annotated) -> None:
        """Take one event. A stage that ran more than once counts in sum."""
        self.sources.extend(event.sources)
        if event.stage is not None:
            self._stages[event.stage] = round(self._stages.get(event.stage, 0.0) + event.stage_ms, 3)

    @property
    def stage_times(self) -> StageTimes | None:
        """The `sage` field, or None where no stage was reported."""
        return StageTimes(self._stages) if self._stages else None


def source_bodies(hits: Sequence[Hit]) -> list[SourceBody]:
    """Return `hits` as they are shown to clients."""
    return [SourceBody(hit.source, hit.title, hit.position, hit.score, hit.text) for hit in hits]
