"""What every OpenAI route means: bodies to works, events to answers. Pure, no IO; see `operation.Operation`."""

from sage_gateway.operations.chat import ChatOperation
from sage_gateway.operations.completion import CompletionOperation
from sage_gateway.operations.embedding import EmbeddingOperation
from sage_gateway.operations.rerank import RerankOperation
from sage_gateway.operations.score import ScoreOperation
from sage_gateway.operations.tokenize import DetokenizeOperation, TokenizeOperation

__all__ = [
    "ChatOperation",
    "CompletionOperation",
    "DetokenizeOperation",
    "EmbeddingOperation",
    "RerankOperation",
    "ScoreOperation",
    "TokenizeOperation",
]
