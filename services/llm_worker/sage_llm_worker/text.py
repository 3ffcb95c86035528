"""From token ids to text that may be sent: whole characters only, and nothing that may still be a stop string.

What leaves obeys one rule: the text delivered so far is the text of the ids delivered so far. So another
attempt can continue from either of the two without a gap or a repetition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sage_wire.messages import TokenLogprobs, Tokens

__all__ = ["Detokenizer", "TextAssembler", "decoder_of"]

_REPLACEMENT = "\ufffd"


def decoder_of(tokenizer: Any, kept: Collection[str] = ()) -> Callable[[list[int]], str]:
    """Return ids -> text for a Hugging Face tokenizer: spaces as they are, no special tokens but `kept` ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):

        def decode(ids: list[int], *, skips: bool) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=skips, clean_up_tokenization_spaces=False))

        dropped = set(tokenizer.all_special_ids)
        contents = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    else:
        # The Rust call alone: ten times cheaper than the wrapper, and made twice per token.
        def decode(ids: list[int], *, skips: bool) -> str:
            return str(backend.decode(ids, skip_special_tokens=skips))

        added = backend.get_added_tokens_decoder()
        dropped = {token_id for token_id, token in added.items() if token.special}
        contents = {token_id: added[token_id].content for token_id in dropped}
    left = {token_id for token_id in dropped if contents[token_id] not in kept}
    if left == dropped:
        return lambda ids: decode(ids, skips=True)
    return lambda ids: decode([token_id for token_id in ids if token_id not in left], skips=False)


class Detokenizer:
    """Turns one sequence's ids into text, a piece at a time.

    Sliding window over the tokenizer's own `decode` (the method of vLLM's and TGI's slow path): the text of
    the window is compared with and without the new ids, so that tokens whose text depends on their neighbours
    (spaces in SentencePiece, characters spread over several byte tokens) come out right.
    """

    __slots__ = ("_decode", "_ids", "_read", "_window")

    def __init__(self, decode: Callable[[list[int]], str], context: Sequence[int] = ()) -> None:
        """`context`: the ids before the first new one; a few are enough, they only give the window a start."""
        self._decode = decode
        self._ids = list(context[-6:])
        self._window = 0
        self._read = len(self._ids)

    def push(self, token_id: int) -> str | None:
        """Return the text that `token_id` completes, or None while a character is still incomplete.

        Bytes that are no UTF-8 vanish: replacement characters are never returned.
        """
        self._ids.append(token_id)
        before = self._decode(self._ids[self._window : self._read])
        text = self._decode(self._ids[self._window :])
        # No character has more than four bytes: more pending ids than that are garbage, not a character.
        if text.endswith(_REPLACEMENT) and len(self._ids) - self._read < 5:
            return None
        self._window, self._read = self._read, len(self._ids)
        if self._window > 64:
            del self._ids[: self._window]
            self._window, self._read = 0, len(self._ids)
        if not text.startswith(before):
            # Bytes that were given up as garbage began a character that is complete now.
            before = before.rstrip(_REPLACEMENT) if text.startswith(before.rstrip(_REPLACEMENT)) else before
        return text[len(before) :].replace(_REPLACEMENT, "")


@dataclass(slots=True)
class _Piece:
    token_ids: list[int]
    text: str
    num_tokens: int
    logprobs: list[TokenLogprobs]

    def tokens(self) -> Tokens:
        return Tokens(
            text=self.text, token_ids=self.token_ids, num_tokens=self.num_tokens, logprobs=self.logprobs
        )


class TextAssembler:
    """Releases pieces of text once no stop string can begin in them."""

    __slots__ = ("_longest", "_num_unsearched", "_pending", "_pieces", "_stop", "stopped_by")

    def __init__(self, stop: Sequence[str] = (), num_unsearched: int = 0) -> None:
        """No stop string is looked for in the text of the first `num_unsearched` tokens."""
        self._stop = tuple(text for text in stop if text)
        self._longest = max(map(len, self._stop), default=0)
        self._num_unsearched = num_unsearched
        self._pieces: list[_Piece] = []
        self._pending = _Piece([], "", 0, [])
        self.stopped_by: str | None = None
        """The stop string that was found."""

    @property
    def is_stopped(self) -> bool:
        """True once a stop string was found; nothing may be pushed after it."""
        return self.stopped_by is not None

    def push(
        self,
        token_ids: Sequence[int],
        text: str | None,
        num_tokens: int = 1,
        logprobs: TokenLogprobs | None = None,
    ) -> Tokens | None:
        """Take the next tokens and return what may be sent now.

        `text` None or empty: the tokens complete no character yet; they leave with the text that does.
        """
        piece = self._pending
        piece.token_ids.extend(token_ids)
        piece.num_tokens += num_tokens
        if logprobs is not None:
            piece.logprobs.append(logprobs)
        if not text:
            return None
        piece.text = text
        self._pending = _Piece([], "", 0, [])
        if not self._stop:
            return piece.tokens()
        if self._num_unsearched > 0:
            self._num_unsearched -= piece.num_tokens
            return piece.tokens()
        self._pieces.append(piece)
        buffer = "".join(piece.text for piece in self._pieces)
        found = [(at, stop) for stop in self._stop if (at := buffer.find(stop)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            return self._release(at, is_last=True)
        return self._release(self._num_safe(buffer), is_last=False)

    def finish(self) -> Tokens | None:
        """Return everything held back, after the last token; an incomplete character is dropped."""
        if self.is_stopped:
            return None
        if self._pending.token_ids:
            self._pieces.append(self._pending)
            self._pending = _Piece([], "", 0, [])
        return self._release(sum(len(piece.text) for piece in self._pieces), is_last=True)

    def _num_safe(self, buffer: str) -> int:
        """Count the leading characters of `buffer` in which no stop string can begin any more."""
        for length in range(min(self._longest - 1, len(buffer)), 0, -1):
            tail = buffer[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return len(buffer) - length
        return len(buffer)

    def _release(self, num_chars: int, *, is_last: bool) -> Tokens | None:
        """Give out the pieces that end within `num_chars`; the last release also cuts a piece in two."""
        released = _Piece([], "", 0, [])
        while self._pieces and len(released.text) + len(self._pieces[0].text) <= num_chars:
            piece = self._pieces.pop(0)
            released.text += piece.text
            released.token_ids += piece.token_ids
            released.num_tokens += piece.num_tokens
            released.logprobs += piece.logprobs
        if is_last and self._pieces:
            released.text += self._pieces[0].text[: num_chars - len(released.text)]
            released.num_tokens += sum(piece.num_tokens for piece in self._pieces)
            self._pieces.clear()
        return released.tokens() if released.text or released.token_ids else None
