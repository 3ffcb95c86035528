"""What two prompts share, without reading either: chained hashes of their leading blocks. Part of the protocol.

A prompt becomes bytes, each chat message as role, 0x1f, name, 0x1e, content, 0x1d (UTF-8), token ids as
little-endian uint32. It is cut into blocks of 512 bytes, which stand for 128 tokens; what is left at the end is not
counted. The hash of a block is BLAKE2b-64 over the hash before it and the block, so equal hashes at place `n` mean
equal first `n` blocks, in every process. Engines compare tokens: the guess is off by the tokenizer, not by much.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

from sage_wire.messages.work import ChatPrompt, TextPrompt, TokenPrompt

__all__ = ["BLOCK_BYTES", "BLOCK_TOKENS", "MAX_BLOCKS", "prefix_blocks"]

BLOCK_BYTES: Final = 512
BLOCK_TOKENS: Final = 128
"""Tokens that a block stands for: four bytes of text to a token."""
MAX_BLOCKS: Final = 256
_MAX_BYTES: Final = BLOCK_BYTES * MAX_BLOCKS
_HASH_BYTES: Final = 8


def prefix_blocks(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[int]:
    """Return the hashes of the whole blocks that `prompt` begins with: unsigned, 64 bits, at most `MAX_BLOCKS`."""
    kind, parts = _parts(prompt)
    data = bytearray()
    for part in parts:
        data += part
        if len(data) >= _MAX_BYTES:
            break
    hashes: list[int] = []
    last = kind
    for start in range(0, min(len(data), _MAX_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        last = blake2b(last + data[start : start + BLOCK_BYTES], digest_size=_HASH_BYTES).digest()
        hashes.append(int.from_bytes(last, "little"))
    return hashes


def _parts(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> tuple[bytes, Iterator[bytes]]:
    """Return what the chain of hashes starts from, and the prompt's bytes in pieces."""
    match prompt:
        case ChatPrompt(messages=messages):
            return b"chat", (
                _utf8(f"{message.role}\x1f{message.name or ''}\x1e{message.content[:_MAX_BYTES]}\x1d")
                for message in messages
            )
        case TextPrompt(text=text):
            return b"text", iter([_utf8(text[:_MAX_BYTES])])
        case TokenPrompt(token_ids=token_ids):
            return b"tokens", (
                (token_id & 0xFFFFFFFF).to_bytes(4, "little") for token_id in token_ids[: _MAX_BYTES // 4]
            )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
