"""Least squares with coefficients that cannot be negative: what a cost per token, sequence or step has to be."""

from __future__ import annotations

from typing import Final

import numpy as np

from sage_simulator.traces.trace import Floats

__all__ = ["nonnegative_least_squares"]

_TOLERANCE: Final = 1e-10
"""Of the gradient, relative to columns and target of length one."""


def nonnegative_least_squares(matrix: Floats, target: Floats) -> Floats:
    """Return the x >= 0 that minimises |matrix x - target|.

    `matrix`: shape (num_rows, num_columns); a column of zeros gets the coefficient 0. Active set method of Lawson and
    Hanson, *Solving Least Squares Problems* (1974), chapter 23; columns are scaled to length one before.
    """
    lengths = np.linalg.norm(matrix, axis=0)
    scale = np.where(lengths > 0, lengths, 1.0)
    length = float(np.linalg.norm(target)) or 1.0
    columns, wanted = matrix / scale, target / length
    solution = np.zeros(matrix.shape[1])
    free = np.zeros(matrix.shape[1], np.bool_)
    for _ in range(10 * matrix.shape[1] + 10):
        gradient = columns.T @ (wanted - columns @ solution)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= _TOLERANCE:
            break
        free[best] = True
        solution = _within_bounds(columns, wanted, solution, free)
    return solution * length / scale


def _within_bounds(columns: Floats, wanted: Floats, solution: Floats, free: np.ndarray) -> Floats:
    """Go from `solution` towards the least squares over the `free` columns; who reaches zero is bound again."""
    while free.any():
        trial = np.zeros_like(solution)
        trial[free] = np.linalg.lstsq(columns[:, free], wanted, rcond=None)[0]
        below = free & (trial <= 0)
        if not below.any():
            return trial
        step = np.min(solution[below] / (solution[below] - trial[below]))
        solution = solution + step * (trial - solution)
        free &= solution > _TOLERANCE
    return np.zeros_like(solution)
