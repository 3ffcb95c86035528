"""What a reader already has, so that the next attempt neither repeats nor loses anything. Pure.

Each kind of work continues in its own way: generated text by `Resume`, vectors by offset, operator values by being
computed again and skipped. Text of a pipeline cannot be continued: a second run may say something else.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import msgspec

from sage_wire.messages import Annotated, Embed, Event, Generate, Resume, RunPipeline, Tokens, Vectors, Work

__all__ = ["Delivered", "delivered_for"]

FLOAT32_BYTES = 4


class Delivered(Protocol):
    """The memory of one request, across its attempts. Sees every event but Started, Completed and Failed."""

    @property
    def is_resumable(self) -> bool:
        """False once what was delivered cannot be continued by another attempt."""
        ...

    @property
    def is_empty(self) -> bool:
        """True until something was delivered."""
        ...

    def accept(self, event: Event) -> Event | None:
        """Return what of `event` is new, and count it as delivered; None where nothing is."""
        ...

    def next_work(self) -> Work:
        """Return the work of a further attempt, and expect that attempt's events from now on."""
        ...


def delivered_for(work: Work) -> Delivered:
    """Return the empty memory of a request for `work`."""
    match work:
        case Generate():
            return _DeliveredText(work)
        case Embed():
            return _DeliveredVectors(work)
        case _:
            return _DeliveredValues(work)


class _DeliveredText:
    """Text and token ids, in order; a further attempt continues after them.

    Pieces of an echoed prompt are no part of that. An attempt that continues generated text does not send them; one
    that begins again sends them all, cut at the same places, and those that were delivered are dropped.
    """

    is_resumable = True

    def __init__(self, work: Generate) -> None:
        self._work = work
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._num_tokens = 0
        self._has_all_ids = True
        self._num_prompt_pieces = 0
        self._num_repeated = 0

    @property
    def is_empty(self) -> bool:
        return not (self._texts or self._num_prompt_pieces)

    def accept(self, event: Event) -> Event | None:
        if type(event) is Tokens:
            if event.is_prompt:
                return self._accept_prompt(event)
            self._texts.append(event.text)
            self._num_tokens += event.num_tokens
            if event.token_ids:
                self._token_ids += event.token_ids
            elif event.num_tokens:
                self._has_all_ids = False
        return event

    def next_work(self) -> Work:
        if not self._texts:
            self._num_repeated = self._num_prompt_pieces
            return self._work
        before = self._work.resume or Resume()
        # Ids are of use to an engine only where they stand for all of the text.
        has_all_ids = self._has_all_ids and bool(before.token_ids or not before.text)
        resume = Resume(
            text=before.text + "".join(self._texts),
            token_ids=before.token_ids + self._token_ids if has_all_ids else [],
            num_tokens=before.num_tokens + self._num_tokens,
        )
        return msgspec.structs.replace(self._work, resume=resume)

    def _accept_prompt(self, event: Tokens) -> Tokens | None:
        if self._num_repeated:
            self._num_repeated -= 1
            return None
        self._num_prompt_pieces += 1
        return event


class _DeliveredVectors:
    """Rows of vectors in order of offset; rows that come again are cut off, whatever the batches were."""

    is_resumable = True

    def __init__(self, work: Embed) -> None:
        self._work = work
        self._num_rows = 0

    @property
    def is_empty(self) -> bool:
        return self._num_rows == 0

    def accept(self, event: Event) -> Event | None:
        if type(event) is not Vectors:
            return event
        row_bytes = FLOAT32_BYTES * max(1, event.dim)
        end = event.offset + len(event.data) // row_bytes
        skipped = self._num_rows - event.offset
        if end <= self._num_rows:
            return None
        self._num_rows = end
        if skipped <= 0:
            return event
        return msgspec.structs.replace(
            event, offset=event.offset + skipped, data=event.data[skipped * row_bytes :]
        )

    def next_work(self) -> Work:
        return self._work


class _DeliveredValues:
    """Values of operators and facts of a pipeline; a further attempt's first ones of each kind are the same ones."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._is_run = isinstance(work, RunPipeline)
        self._delivered: Counter[object] = Counter()
        self._repeats: Counter[object] = Counter()
        self.is_resumable = True

    @property
    def is_empty(self) -> bool:
        return not self._delivered

    def accept(self, event: Event) -> Event | None:
        kind = type(event)
        if kind is Tokens:
            self.is_resumable = False
        key = ("stage", event.stage) if type(event) is Annotated else kind
        if self._repeats[key] > 0:
            self._repeats[key] -= 1
            return None
        self._delivered[key] += 1
        return event

    def next_work(self) -> Work:
        self._repeats = self._delivered.copy()
        return self._work
