"""`python -m sage_llm_worker`: one llm-worker process."""

from __future__ import annotations

import sys

from sage_actor import run_service
from sage_llm_worker.actor import LlmWorker
from sage_llm_worker.settings import LlmWorkerSettings

__all__ = ["main"]


def main() -> int:
    """Run until stopped; return the exit status."""
    return run_service(
        kind=LlmWorker.kind,
        settings_type=LlmWorkerSettings,
        build=lambda settings, context: LlmWorker(context, settings.llm_worker),
        description="Generates text with one engine: vLLM, transformers, an extractive reader, or an emulation.",
    )


if __name__ == "__main__":
    sys.exit(main())
