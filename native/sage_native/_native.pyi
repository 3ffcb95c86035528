"""Types of the compiled module. Functions release the GIL; ValueError says what was found and what was expected."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

def top_k(
    matrix: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    k: int,
    mask: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return (indices, scores) of the rows of `matrix` with the largest inner products, exactly.

    `matrix`: shape (num_rows, dim); `queries`: shape (num_queries, dim); both C-contiguous. The results have
    shape (num_queries, min(k, num_allowed)), best first, ties by lower index; a row whose score is NaN ranks last
    with score -inf. `mask`: shape (num_rows,), False = skipped. Scores have the same bits on every host.
    """

def maximal_marginal_relevance(
    candidates: npt.NDArray[np.float32],
    relevance: npt.NDArray[np.float32],
    k: int,
    trade_off: float = 0.5,
) -> npt.NDArray[np.int64]:
    """Choose candidates that are relevant and unlike each other; return min(k, num_rows) indices in order.

    `candidates`: shape (num_rows, dim), L2-normalised; `relevance`: shape (num_rows,), on the same scale as a
    cosine. `trade_off` 1 is plain relevance, 0 plain diversity. Carbonell and Goldstein, SIGIR 1998.
    """

def reciprocal_rank_fusion(
    rankings: Sequence[npt.NDArray[np.int64]],
    k: int,
    rank_constant: float = 60.0,
    weights: Sequence[float] | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Fuse rankings of ids, each best first; return the (ids, scores) of the best `k`, ties by lower id.

    The score of an id is the sum of weight / (rank_constant + rank), rank counted from 1, over the rankings that
    hold it. Cormack, Clarke and Buettcher, SIGIR 2009.
    """

def split_text(text: str, chunk_chars: int, overlap_chars: int = 0) -> list[tuple[int, int]]:
    """Cut `text` into passages; return their half-open ranges of code points, so `text[start:end]` is a passage.

    Passages have at most `chunk_chars` characters and no white space at their ends, hold every character that is
    not white space, and share at most `overlap_chars` (at most half of `chunk_chars`) with their neighbours. They
    end at paragraphs, else lines, sentences, words; only a longer run without any of them is cut inside.
    """
