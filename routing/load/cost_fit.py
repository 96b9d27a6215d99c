"""The price of one grouped expert product, learnt from the ranks' own timings. Pure.

seconds = per_expert_s * distinct experts + per_pair_s * pairs + fixed_s. At small batches the first counts, because
each expert's weights are read once; at large ones the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from routing.load.least_squares import non_negative_fit
from routing.load.sums import FloatArray
from routing.load.window import fading

MIN_CALLS = 50.0  # below this many remembered calls the prior holds
MIN_VARIATION = 1e-3  # share of a term's own variance that the other terms do not explain
NUM_TERMS = 3  # distinct experts, pairs, and the call itself

NO_MOMENTS: FloatArray = np.zeros((NUM_TERMS + 1, NUM_TERMS + 1))


@dataclass(frozen=True)
class ExpertCost:
    """Seconds of an expert rank for one MoE layer: for each distinct expert, for each pair, and for the call."""

    per_expert_s: float
    per_pair_s: float
    fixed_s: float = 0.0

    def seconds(self, distinct: FloatArray, pairs: FloatArray) -> FloatArray:
        """Predicted time, element by element."""
        return self.per_expert_s * distinct + self.per_pair_s * pairs + self.fixed_s


def cost_moments(distinct: ArrayLike, pairs: ArrayLike, seconds: ArrayLike) -> FloatArray:
    """[4, 4]: products of (distinct, pairs, 1, seconds) with each other, summed over calls. They add up over ranks and
    fade with time, and are all that a fit needs."""
    columns = [np.asarray(column, dtype=np.float64) for column in (distinct, pairs, seconds)]
    rows = np.stack((columns[0], columns[1], np.ones_like(columns[0]), columns[2]), axis=-1).reshape(-1, NUM_TERMS + 1)
    moments: FloatArray = rows.T @ rows
    return moments


def fit_cost(moments: FloatArray, prior: ExpertCost) -> ExpertCost:
    """Least squares with no negative price. The prior, as long as the calls are too few or too much alike to tell its
    prices apart, or when neither experts nor pairs seem to cost anything."""
    normal, target = moments[:NUM_TERMS, :NUM_TERMS], moments[:NUM_TERMS, NUM_TERMS]
    if normal[2, 2] < MIN_CALLS or not _is_varied(normal):
        return prior
    prices = non_negative_fit(normal, target)
    return ExpertCost(*map(float, prices)) if prices[0] + prices[1] > 0.0 else prior


class CostFit:
    """A cost that follows the ranks: moments of all of them, forgotten by half within each `half_life_s`."""

    def __init__(self, prior: ExpertCost, half_life_s: float) -> None:
        self._prior = prior
        self._half_life_s = half_life_s
        self._moments = NO_MOMENTS
        self._time = 0.0

    def add(self, moments: FloatArray, now: float) -> None:
        """Calls that a rank has just reported."""
        self._moments = self._moments * fading(now - self._time, self._half_life_s) + moments
        self._time = max(now, self._time)

    def cost(self) -> ExpertCost:
        """The present fit, or the prior."""
        return fit_cost(self._moments, self._prior)

    @property
    def num_calls(self) -> float:
        """Calls remembered, old ones counting less."""
        return float(self._moments[2, 2])


def _is_varied(normal: FloatArray) -> bool:
    """Whether distinct experts and pairs vary, and not only together."""
    means = normal[:2, 2] / normal[2, 2]
    covariance = normal[:2, :2] / normal[2, 2] - np.outer(means, means)
    distinct, pairs = np.diag(covariance) / np.maximum(means, 1e-30) ** 2
    if min(distinct, pairs) < MIN_VARIATION**2:
        return False
    correlation = covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1])
    return bool(correlation < 1.0 - MIN_VARIATION)
