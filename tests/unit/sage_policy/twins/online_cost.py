"""Twins of the native least squares and factors: least squares by numpy over all rows ever seen, bounds by trying."""

from __future__ import annotations

from itertools import product
from math import exp, log, sqrt

import numpy as np
import numpy.typing as npt

__all__ = ["LeastSquaresTwin", "QuantileFactorTwin", "SpeedFactorTwin"]

Floats = npt.NDArray[np.float64]


class LeastSquaresTwin:
    def __init__(
        self, size: int, forgetting: float, prior_weight: float, lowest: float, highest: float
    ) -> None:
        self.size, self.forgetting, self.prior_weight = size, forgetting, prior_weight
        self.lowest, self.highest = lowest, highest
        self.rows: list[list[float]] = []
        self.outputs: list[float] = []

    def observe(self, inputs: list[float], output: float) -> None:
        self.rows.append(inputs[: self.size])
        self.outputs.append(output)

    def system(self) -> tuple[Floats, Floats]:
        """Return rows and outputs, weighted by age, with one row per coefficient that says "1, as before"."""
        weights = np.sqrt(self.forgetting ** np.arange(len(self.rows))[::-1])
        prior = sqrt(self.prior_weight) * np.eye(self.size)
        rows = np.array(self.rows, dtype=float).reshape(-1, self.size)
        outputs = np.array(self.outputs, dtype=float)
        return np.vstack([rows * weights[:, None], prior]), np.concatenate(
            [outputs * weights, prior.sum(axis=1)]
        )

    def error(self, coefficients: Floats) -> float:
        rows, outputs = self.system()
        return float(np.sum((rows @ coefficients - outputs) ** 2))

    def solve(self) -> Floats:
        """Return the best of all ways to hold some coefficients at a bound and fit the others freely."""
        rows, outputs = self.system()
        best, least = np.ones(self.size), np.inf
        for held in product([None, self.lowest, self.highest], repeat=self.size):
            is_free = np.array([bound is None for bound in held])
            coefficients = np.array([bound or 0.0 for bound in held])
            rest = outputs - rows @ coefficients
            coefficients[is_free] = np.linalg.lstsq(rows[:, is_free], rest, rcond=None)[0]
            error = float(np.sum((rows @ coefficients - outputs) ** 2))
            is_inside = np.all((coefficients >= self.lowest - 1e-9) & (coefficients <= self.highest + 1e-9))
            if is_inside and error < least:
                best, least = coefficients, error
        return best


class SpeedFactorTwin:
    def __init__(self) -> None:
        self.ratios: list[float] = []  # log(actual / predicted), cut, since the last restart
        self.quick: list[float] = []  # all of them
        self.slow, self.variance = 0.0, 0.04
        self.restart = (4.0, 0.0)  # weight and value that the mean starts from

    def observe(self, predicted: float, actual: float) -> None:
        innovation = min(max(log(actual / predicted) - self.slow, -1.0), 1.0)
        self.quick.append(self.slow + innovation)
        self.ratios.append(self.slow + innovation)
        self.variance += 0.005 * (innovation**2 - self.variance)
        self.slow = self.mean(self.ratios, 0.995, self.restart)
        quick = self.mean(self.quick, 0.9, (0.0, 0.0))
        quick_weight = sum(0.9**age for age in range(len(self.quick)))
        if quick_weight > 6 and abs(quick - self.slow) > 4 * sqrt(self.variance * 0.1 / 1.9):
            self.start_from(quick_weight, quick)
        bounded = min(max(self.slow, log(0.3)), log(3))
        if bounded != self.slow:
            weight = self.restart[0] * 0.995 ** len(self.ratios)
            self.start_from(weight + sum(0.995**age for age in range(len(self.ratios))), bounded)

    def start_from(self, weight: float, value: float) -> None:
        self.restart, self.ratios, self.slow = (weight, value), [], value

    @staticmethod
    def mean(values: list[float], forgetting: float, start: tuple[float, float]) -> float:
        weights = forgetting ** np.arange(len(values))[::-1]
        start_weight = start[0] * forgetting ** len(values)
        return float((start_weight * start[1] + weights @ np.array(values)) / (start_weight + weights.sum()))

    @property
    def value(self) -> float:
        return exp(self.slow)


class QuantileFactorTwin:
    def __init__(self, q: float = 0.9, step: float = 0.02) -> None:
        self.q, self.step = q, step
        self.value = 1.0
        self.coverage = q

    def observe(self, predicted: float, actual: float) -> None:
        is_missed = actual > self.value * predicted
        moved = self.value * exp(self.step * (is_missed - (1 - self.q)))
        self.value = min(max(moved, 0.5), 3.0)
        self.coverage = 0.99 * self.coverage + 0.01 * (not is_missed)
