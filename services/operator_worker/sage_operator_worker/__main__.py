"""`python -m sage_operator_worker`."""

from __future__ import annotations

import sys

from sage_actor import ActorContext, run_service
from sage_operator_worker.actor import OperatorWorker
from sage_operator_worker.settings import OperatorWorkerSettings
from sage_operator_worker.sqlite_store import SqliteVectorStore, StoreLimits

__all__ = ["main"]


def main() -> int:
    """Run the service; return the exit code."""
    return run_service(
        kind="operator-worker",
        settings_type=OperatorWorkerSettings,
        build=_build,
        description="Splits documents, keeps collections of passages, and retrieves from them.",
    )


def _build(settings: OperatorWorkerSettings, context: ActorContext) -> OperatorWorker:
    section = settings.operator_worker
    limits = StoreLimits(
        max_collections=section.max_collections,
        max_chunks=section.max_collection_chunks,
        max_open=section.max_open_collections,
        max_cached_bytes=section.max_cached_bytes,
    )
    folder = settings.data_dir
    return OperatorWorker(context, section, open_store=lambda: SqliteVectorStore(folder, limits))


if __name__ == "__main__":
    sys.exit(main())
