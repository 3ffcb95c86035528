"""The llm-worker: one engine that generates text, behind the `Engine` protocol."""

from sage_llm_worker.settings import LlmWorkerSection, LlmWorkerSettings

__all__ = ["LlmWorkerSection", "LlmWorkerSettings"]
