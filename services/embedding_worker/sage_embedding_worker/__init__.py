"""The embedding-worker: sentence-transformers models that embed and rerank."""

from sage_embedding_worker.actor import EmbeddingWorker
from sage_embedding_worker.encoder import CrossEncoder, Encoder
from sage_embedding_worker.settings import EmbeddingWorkerSection, EmbeddingWorkerSettings

__all__ = ["CrossEncoder", "EmbeddingWorker", "EmbeddingWorkerSection", "EmbeddingWorkerSettings", "Encoder"]
