"""The vocabulary of the emulated engine: words that it writes, and bytes for everything that it reads. Pure.

| id | is |
|---|---|
| 0 … 59 | a word of `WORDS`, with a space before it |
| 60 … 119 | the same without the space, as an answer begins |
| 255 | what a chat template writes between texts; no text of its own |
| 2^8 … 2^9 - 1, 2^16 …, 2^24 …, 2^32 … | one to four bytes of UTF-8 below a leading 1, big-endian |

Any other id below 2^33 stands for the word that its remainder by 120 names. Prompts are four bytes to a token, so they
have as many tokens as `sage_client.work_size` estimates, and every text round-trips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from sage_client.work_size import BYTES_PER_TOKEN, chat_texts
from sage_core import BadRequest
from sage_wire.messages import ChatPrompt, Logprob, TextPrompt, TokenLogprobs, TokenPrompt

__all__ = [
    "NUM_WORDS",
    "VOCAB_SIZE",
    "WORDS",
    "bytes_of",
    "check_ids",
    "ids_of_prompt",
    "ids_of_text",
    "logprobs_of",
    "pieces_of",
    "word_at",
]

_WORD_LIST: Final = (
    "able air also area back ball bank base bell bird blue boat body book call card care case cell city "
    "code cold cost dark data date deal deep desk door down draw east edge face fact fall farm fast fire "
    "fish flow food form free game gate give goal gold good gray hand head help high hill home hope hour"
)
WORDS: Final = tuple(f" {word}" for word in _WORD_LIST.split()) + tuple(_WORD_LIST.split())
NUM_WORDS: Final = len(WORDS) // 2
VOCAB_SIZE: Final = 2**33
_TEMPLATE: Final = 255
_MASK: Final = 0xFFFFFFFF
_BYTES: Final = tuple(word.encode() for word in WORDS)


def word_at(key: int, index: int) -> int:
    """Return the id of word `index` of the answer that `key` names, with a space before it."""
    return (((key ^ (index * 0x9E3779B1)) * 0x85EBCA6B & _MASK) >> 20) % NUM_WORDS


def ids_of_text(text: str) -> list[int]:
    """Return the ids of a text: four bytes each, whatever characters they belong to."""
    data = text.encode("utf-8", "surrogatepass")
    return [_id_of(data[start : start + BYTES_PER_TOKEN]) for start in range(0, len(data), BYTES_PER_TOKEN)]


def ids_of_prompt(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[int]:
    """Return as many ids as the prompt is counted for. Raises BadRequest for ids that there are not."""
    match prompt:
        case TokenPrompt(token_ids=token_ids):
            check_ids(token_ids, "prompt")
            return list(token_ids)
        case TextPrompt(text=text):
            return ids_of_text(text)
        case ChatPrompt():
            ids: list[int] = []
            for text, num_around in chat_texts(prompt):
                ids += [_TEMPLATE] * num_around
                ids += ids_of_text(text)
            return ids


def pieces_of(text: str) -> list[tuple[int, str]]:
    """Return a text as tokens with the text of each: whole characters, at most four bytes."""
    pieces: list[tuple[int, str]] = []
    piece, size = "", 0
    for character in text:
        num_bytes = len(character.encode())
        if size + num_bytes > BYTES_PER_TOKEN:
            pieces.append((_id_of(piece.encode()), piece))
            piece, size = "", 0
        piece += character
        size += num_bytes
    if piece:
        pieces.append((_id_of(piece.encode()), piece))
    return pieces


def bytes_of(ids: Sequence[int]) -> bytes:
    """Return the bytes that ids stand for."""
    return b"".join(map(_bytes_of, ids))


def check_ids(ids: Sequence[int], param: str) -> None:
    """Raise BadRequest for ids that no token has."""
    for token_id in ids:
        if not 0 <= token_id < VOCAB_SIZE:
            raise BadRequest(
                f"token id {token_id} is out of vocabulary ({VOCAB_SIZE} tokens); ids are those of its own "
                f"tokenizer, and text may be sent instead",
                param=param,
            )


def logprobs_of(token_id: int, num_top: int, *, is_first: bool = False) -> TokenLogprobs:
    """Return made-up log probabilities, always the same for a token: its own is the highest, and each next one is
    half as likely.
    """
    if is_first:
        return TokenLogprobs(chosen=_logprob(token_id, 0.0), is_first=True)
    own = -0.1 - token_id % 50 / 100
    chosen = _logprob(token_id, own)
    rest = math.log(-math.expm1(own))
    others = [
        _logprob((token_id + place) % len(WORDS), rest - math.log(2) * place) for place in range(1, num_top)
    ]
    return TokenLogprobs(chosen=chosen, top=[chosen, *others] if num_top else [])


def _logprob(token_id: int, value: float) -> Logprob:
    data = _bytes_of(token_id)
    text = data.decode("utf-8", "replace")
    return Logprob(text=text, logprob=value, token_id=token_id, raw=b"" if text.encode() == data else data)


def _id_of(data: bytes) -> int:
    return 1 << 8 * len(data) | int.from_bytes(data, "big")


def _bytes_of(token_id: int) -> bytes:
    if token_id == _TEMPLATE:
        return b""
    num_bytes, rest = divmod(token_id.bit_length() - 1, 8)
    if rest == 0 and 1 <= num_bytes <= BYTES_PER_TOKEN:
        return (token_id - (1 << 8 * num_bytes)).to_bytes(num_bytes, "big")
    return _BYTES[token_id % len(_BYTES)]
