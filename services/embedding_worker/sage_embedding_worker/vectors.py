"""Pure functions over texts and vectors: duplicates, truncated dimensions, events of bounded size."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from sage_core import BadRequest
from sage_embedding_worker.encoder import Floats
from sage_wire.messages import Vectors

__all__ = ["MAX_EVENT_BYTES", "normalise", "shorten", "split_events", "unique"]

MAX_EVENT_BYTES: Final = 192 * 1024
"""Vectors per event: a frame stays under 256 KiB with its headers and other deltas."""

T = TypeVar("T", bound=Hashable)


def unique(items: Sequence[T]) -> tuple[list[T], npt.NDArray[np.intp]]:
    """Return the distinct items in order of appearance, and for each of `items` its place among them."""
    places: dict[T, int] = {}
    inverse = np.fromiter(
        (places.setdefault(item, len(places)) for item in items), dtype=np.intp, count=len(items)
    )
    return list(places), inverse


def normalise(vectors: npt.NDArray[np.floating]) -> Floats:
    """Return float32 rows of length 1; an all-zero row stays zero."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    normalised: Floats = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return normalised


def shorten(vectors: Floats, dimensions: int | None) -> Floats:
    """Return the first `dimensions` columns, normalised again; None returns `vectors`.

    Meaningful for models trained for it (Matryoshka); others lose quality gradually. Raises BadRequest outside
    1 to dim.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if not 1 <= dimensions <= vectors.shape[1]:
        raise BadRequest(
            f"dimensions is {dimensions}; expected 1 to {vectors.shape[1]} for this model", param="dimensions"
        )
    return normalise(vectors[:, :dimensions])


def split_events(vectors: Floats, max_bytes: int = MAX_EVENT_BYTES) -> Iterator[Vectors]:
    """Yield the rows in order as events of at most `max_bytes` of data, at least one row each."""
    num_rows, dim = vectors.shape
    step = max(1, max_bytes // (4 * dim))
    for offset in range(0, num_rows, step):
        rows = np.ascontiguousarray(vectors[offset : offset + step], dtype="<f4")
        yield Vectors(offset=offset, dim=dim, data=rows.tobytes())
