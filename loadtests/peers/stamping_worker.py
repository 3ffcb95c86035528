"""An llm-worker whose tokens say when they were made: what `tools/clock.hpp` describes, from the emulated engine.

With it the way of a token through worker, nats-server and gateway, and the way of a request through gateway and
scheduler, are known exactly, without the time that the engine itself holds the request.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator

import msgspec

from sage_actor import run_service
from sage_llm_worker.actor import LlmWorker
from sage_llm_worker.settings import LlmWorkerSettings
from sage_wire.messages import Event, Tokens
from sage_worker import Assigned

__all__ = ["StampingWorker"]


class StampingWorker(LlmWorker):
    """Puts a stamp in the place of each token's text."""

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        """See `LlmWorker.perform`."""
        received = f"~{time.monotonic_ns():016x}"
        async for event in super().perform(request):
            if isinstance(event, Tokens):
                yield msgspec.structs.replace(event, text=f" @{time.monotonic_ns():016x}{received}")
                received = ""
            else:
                yield event


def main() -> int:
    """Run until stopped; return the exit status."""
    return run_service(
        kind=LlmWorker.kind,
        settings_type=LlmWorkerSettings,
        build=lambda settings, context: StampingWorker(context, settings.llm_worker),
        description="The emulated engine, its tokens stamped with the time they were made.",
    )


if __name__ == "__main__":
    sys.exit(main())
