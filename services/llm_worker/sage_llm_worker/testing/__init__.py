"""For tests of engines: a tiny model, and the promises that every engine keeps."""

from sage_llm_worker.testing.tiny_llama import tiny_llama

__all__ = ["tiny_llama"]
