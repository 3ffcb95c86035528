"""For tests of engines: a tiny model, and the promises that every engine keeps."""

from sage_llm_worker.testing.tiny_llama import CHAT_TEMPLATE, TOOL_TEMPLATE, tiny_llama

__all__ = ["CHAT_TEMPLATE", "TOOL_TEMPLATE", "tiny_llama"]
