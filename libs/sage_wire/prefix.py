"""What two prompts share, without reading either: chained hashes of their leading blocks. Part of the protocol.

A prompt becomes bytes (UTF-8): a chat's tools first, each as 0x1f, name, 0x1e, description, 0x1e, parameters, 0x1d;
then its messages, each as role, 0x1f, name, 0x1e, content, then 0x1c and the reasoning where there is one, 0x1f, name,
0x1e, arguments for each tool call, 0x1b and BLAKE2b-64 for each image, and 0x1d. Token ids become little-endian uint32.
The bytes are cut into blocks of 512, which stand for 128 tokens; what is left at the end is not counted. The hash of a
block is BLAKE2b-64 over the hash before it and the block, so equal hashes at place `n` mean equal first `n` blocks, in
every process; the chain starts from the kind of the prompt and a chat's template arguments. Engines compare tokens: the
guess is off by the tokenizer, not by much.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from sage_wire.messages.work import ChatPrompt, TextPrompt, TokenPrompt, ToolDefinition

__all__ = ["BLOCK_BYTES", "BLOCK_TOKENS", "MAX_BLOCKS", "prefix_blocks"]

BLOCK_BYTES: Final = 512
BLOCK_TOKENS: Final = 128
"""Tokens that a block stands for: four bytes of text to a token."""
MAX_BLOCKS: Final = 256
_MAX_BYTES: Final = BLOCK_BYTES * MAX_BLOCKS
_HASH_BYTES: Final = 8


def prefix_blocks(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[int]:
    """Return the hashes of the whole blocks that `prompt` begins with: unsigned, 64 bits, at most `MAX_BLOCKS`."""
    last, data = _beginning(prompt)
    hashes: list[int] = []
    for start in range(0, min(len(data), _MAX_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        last = blake2b(last + data[start : start + BLOCK_BYTES], digest_size=_HASH_BYTES).digest()
        hashes.append(int.from_bytes(last, "little"))
    return hashes


def _beginning(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> tuple[bytes, bytes]:
    """Return what the chain of hashes starts from, and at least as many of the prompt's bytes as are hashed."""
    match prompt:
        case ChatPrompt():
            return b"chat" + _utf8(prompt.template_arguments), _chat(prompt)
        case TextPrompt(text=text):
            return b"text", _utf8(text[:_MAX_BYTES])
        case TokenPrompt(token_ids=token_ids):
            return b"tokens", b"".join(
                [(token_id & 0xFFFFFFFF).to_bytes(4, "little") for token_id in token_ids[: _MAX_BYTES // 4]]
            )


def _chat(prompt: ChatPrompt) -> bytes:
    # One string, encoded once: this runs for every request at its consumer.
    data = b""
    texts = [_tool(tool) for tool in prompt.tools]
    num_chars = sum(map(len, texts))
    for message in prompt.messages:
        if num_chars >= _MAX_BYTES:
            break
        text = f"{message.role}\x1f{message.name or ''}\x1e{message.content[:_MAX_BYTES]}"
        if message.reasoning:
            text += f"\x1c{message.reasoning[:_MAX_BYTES]}"
        for call in message.tool_calls:
            text += f"\x1f{call.name}\x1e{call.arguments[:_MAX_BYTES]}"
        num_chars += len(text)
        if message.images:
            data += _utf8("".join([*texts, text]))
            for image in message.images:
                data += b"\x1b" + blake2b(image.data, digest_size=_HASH_BYTES).digest()
            texts = ["\x1d"]
        else:
            texts += (text, "\x1d")
    return data + _utf8("".join(texts))


def _tool(tool: ToolDefinition) -> str:
    return f"\x1f{tool.name}\x1e{tool.description[:_MAX_BYTES]}\x1e{tool.parameters[:_MAX_BYTES]}\x1d"


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
