"""The operator-worker: split, index, retrieve, and the store of passages behind them."""

from sage_operator_worker.actor import OperatorWorker
from sage_operator_worker.settings import OperatorWorkerSection, OperatorWorkerSettings
from sage_operator_worker.sqlite_store import SqliteVectorStore, StoreLimits
from sage_operator_worker.store import CollectionInfo, Query, RetrievalMode, Update, VectorStore

__all__ = [
    "CollectionInfo",
    "OperatorWorker",
    "OperatorWorkerSection",
    "OperatorWorkerSettings",
    "Query",
    "RetrievalMode",
    "SqliteVectorStore",
    "StoreLimits",
    "Update",
    "VectorStore",
]
