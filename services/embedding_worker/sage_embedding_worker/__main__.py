"""`python -m sage_embedding_worker`."""

from __future__ import annotations

import sys
from functools import partial

from sage_actor import ActorContext, run_service
from sage_embedding_worker.actor import EmbeddingWorker
from sage_embedding_worker.sentence_encoder import Compute, SentenceCrossEncoder, SentenceEncoder
from sage_embedding_worker.settings import EmbeddingWorkerSettings

__all__ = ["main"]


def main() -> int:
    """Run the service; return the exit code."""
    return run_service(
        kind="embedding-worker",
        settings_type=EmbeddingWorkerSettings,
        build=_build,
        description="Serves embedding models and rerankers.",
    )


def _build(settings: EmbeddingWorkerSettings, context: ActorContext) -> EmbeddingWorker:
    section = settings.embedding_worker
    compute = Compute(device=section.device, dtype=section.dtype, threads=section.threads)
    return EmbeddingWorker(
        context,
        section,
        load_encoder=partial(SentenceEncoder, compute=compute),
        load_reranker=partial(SentenceCrossEncoder, compute=compute),
    )


if __name__ == "__main__":
    sys.exit(main())
