"""What a step costs in seconds, learnt from the steps that were run. Pure: durations are given, not measured.

A step reads the weights of every expert it touches and computes its rows, so its time is
base + per_row * rows + per_expert * distinct experts. A draft pass costs base + per_row * rows, rows counted once for
each module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORGETTING = 0.98  # weight of the last observation against the one before
RIDGE = 1e-4  # keeps the fit defined while all steps look alike
ENOUGH = 8  # observations before a prediction means something
SHORTEST = 1e-6  # seconds


def distinct_experts(num_rows: Any, num_experts: int, top_k: int) -> Any:
    """Experts of one layer that `num_rows` rows touch when the gate spreads evenly: E (1 - (1 - K / E)^rows).

    num_rows: a number or an array; the result is of the same kind."""
    return num_experts * (1.0 - (1.0 - top_k / num_experts) ** num_rows)


class LinearCost:
    """Least squares on a few features with exponential forgetting. Coefficients are never negative."""

    def __init__(self, num_features: int) -> None:
        self._gram: NDArray[np.float64] = np.zeros((num_features, num_features))
        self._moment: NDArray[np.float64] = np.zeros(num_features)
        self._coefficients: NDArray[np.float64] = np.zeros(num_features)
        self.num_observed = 0

    def observe(self, features: NDArray[np.float64], seconds: float) -> None:
        self._forget_along(features)
        self._gram += np.outer(features, features)
        self._moment += features * seconds
        self.num_observed += 1
        self._coefficients = _non_negative_fit(self._gram, self._moment)

    def seconds(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """features: [..., F]. Returns [...]."""
        predicted: NDArray[np.float64] = features @ self._coefficients
        return predicted

    def _forget_along(self, features: NDArray[np.float64]) -> None:
        """Discount what was learnt from such steps alone: a hundred steps alike say nothing new of other steps, so
        what is known of those must stay. (Directional forgetting: Cao and Schwartz, 2000.)"""
        seen = self._gram @ features
        weight = float(features @ seen)
        if weight > 0.0:
            self._moment -= (1.0 - FORGETTING) * float(features @ self._moment) / weight * seen
            self._gram -= (1.0 - FORGETTING) / weight * np.outer(seen, seen)


class StepCost:
    """Predicts a decode step and a draft pass of one model. Seconds are never 0, so that one can divide by them."""

    def __init__(self, num_experts: int, top_k: int, max_drafts: int) -> None:
        self._num_experts, self._top_k = num_experts, top_k
        self._step = LinearCost(3)
        self._drafting = LinearCost(2)
        # Rows that a sequence runs through all its modules to draft k tokens: the new ones and those to be repaired.
        self.module_rows = [k * (k + 2) / 2 for k in range(max_drafts + 1)]

    @property
    def is_known(self) -> bool:
        """Whether enough was seen to compare lengths."""
        return min(self._step.num_observed, self._drafting.num_observed) >= ENOUGH

    def observe_step(self, num_rows: int, seconds: float) -> None:
        self._step.observe(self._step_features(num_rows), seconds)

    def observe_drafting(self, lengths: Sequence[int], num_module_rows: int, seconds: float) -> None:
        """A draft pass for sequences of these lengths; num_module_rows: rows of all modules added up."""
        self._drafting.observe(np.array([1.0, float(num_module_rows)]), seconds)
        predicted = self._rows_of(lengths)
        if predicted:
            ratio = num_module_rows / predicted
            for length in set(lengths):
                self.module_rows[length] *= 1.0 + (1.0 - FORGETTING) * (ratio - 1.0)

    def step_seconds(self, num_rows: int) -> float:
        return max(float(self._step.seconds(self._step_features(num_rows))), SHORTEST)

    def drafting_seconds(self, lengths: Sequence[int]) -> float:
        rows = self._rows_of(lengths)
        return float(self._drafting.seconds(np.array([1.0, rows]))) if rows else 0.0

    def seconds(self, num_rows: NDArray[np.float64], num_module_rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of steps with so many rows, and of draft passes with so many where there are any."""
        experts = distinct_experts(num_rows, self._num_experts, self._top_k)
        steps = self._step.seconds(np.stack([np.ones(len(num_rows)), num_rows, experts], axis=1))
        drafting = self._drafting.seconds(np.stack([np.ones(len(num_rows)), num_module_rows], axis=1))
        total: NDArray[np.float64] = np.maximum(steps, SHORTEST) + np.where(num_module_rows > 0.0, drafting, 0.0)
        return total

    def _rows_of(self, lengths: Sequence[int]) -> float:
        return sum(self.module_rows[length] for length in lengths)

    def _step_features(self, num_rows: int) -> NDArray[np.float64]:
        return np.array([1.0, float(num_rows), distinct_experts(num_rows, self._num_experts, self._top_k)])


def _non_negative_fit(gram: NDArray[np.float64], moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ridge regression; features that would count negatively are left out, the worst first."""
    active = list(range(len(moment)))
    # Each feature by its own size: rows count in hundreds where the base counts once.
    ridged = gram + RIDGE * np.diag(np.diag(gram))
    while active:
        sub = ridged[np.ix_(active, active)]
        solved = np.linalg.solve(sub, moment[active])
        if solved.min() >= 0.0:
            result = np.zeros(len(moment))
            result[active] = solved
            return result
        active.pop(int(solved.argmin()))
    return np.zeros(len(moment))
