"""What a step costs in seconds, learnt from the steps that were run. Pure: durations are given, not measured.

A step reads the weights of every expert it touches and computes its rows, so its time is
base + per_row * rows + per_expert * distinct experts. A draft pass runs module after module, so it costs
per_module * modules + per_row * rows, rows counted once for each module, + per_draft * drafts, for each one's logits.
Where steps of a size were seen, what they took counts, not the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any, TypeVar

import numpy as np

from routing.load.least_squares import non_negative_fit
from routing.load.sums import FloatArray

FORGETTING = 0.98  # weight of the last observation against the one before
RIDGE = 1e-4  # keeps the fit defined while all steps look alike
REFIT_EVERY = 32  # observations, or a quarter of all while they are few: a fit takes longer than a decision
ENOUGH = 8  # observations before a prediction means something
AT_ONCE = 8  # steps of as many rows that are learnt from together: learning takes as long as a row of a small model
PASSES_AT_ONCE = 4  # draft passes through as many modules that are learnt from together: all is linear in them
SHORTEST = 1e-6  # seconds
# Standard deviations of logarithms, as of a machine whose neighbours come and go.
NOISE = 0.1  # of one step around what it should take
PACE_DRIFT = 0.06  # of the whole machine, from step to step
SIZE_DRIFT = 0.001  # of one size against the others, from step to step
UNKNOWN = 0.2  # of a size that was never seen around the formula
MAX_SURPRISE = 0.4  # what one step can prove at most
LEFT_OUT_PRIOR = 256.0  # rows; before anything was seen, all are seen later
LEFT_OUT_MEMORY = 32.0  # sequences after whose end an old one counts for 1 / e
FEW_ROWS, KNOTS_PER_DOUBLING = 4, 2  # see `_place`


Numbers = TypeVar("Numbers", float, FloatArray)


def distinct_experts(num_rows: Numbers, num_experts: int, top_k: int) -> Numbers:
    """Experts of one layer that `num_rows` rows touch when the gate spreads evenly: E (1 - (1 - K / E)^rows)."""
    untouched: Numbers = (1.0 - top_k / num_experts) ** num_rows
    return num_experts * (1.0 - untouched)


class LinearCost:
    """Least squares on a few features with exponential forgetting. Coefficients are never negative."""

    def __init__(self, num_features: int) -> None:
        self._gram: FloatArray = np.zeros((num_features, num_features))
        self._moment: FloatArray = np.zeros(num_features)
        self._coefficients = (0.0,) * num_features
        self._num_fitted = 0
        self.num_observed = 0

    def observe(self, features: Sequence[float], seconds: float) -> None:
        row = np.array(features)
        self._forget_along(row)
        self._gram += np.outer(row, row)
        self._moment += row * seconds
        self.num_observed += 1

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Seconds for each feature, as of the last few observations."""
        num_new = self.num_observed - self._num_fitted
        if num_new > min(self._num_fitted // 4, REFIT_EVERY - 1):
            self._coefficients = tuple(non_negative_fit(self._gram, self._moment, ridge=RIDGE).tolist())
            self._num_fitted = self.num_observed
        return self._coefficients

    def seconds(self, features: Sequence[float]) -> float:
        """Predicted time."""
        predicted: float = sum(map(mul, self.coefficients, features))
        return predicted

    def _forget_along(self, features: FloatArray) -> None:
        """Discount what was learnt from such steps alone: a hundred steps alike say nothing new of other steps, so
        what is known of those must stay. (Directional forgetting: Cao and Schwartz, 2000.)"""
        seen = self._gram @ features
        weight = float(features @ seen)
        if weight > 0.0:
            self._moment -= (1.0 - FORGETTING) * float(features @ self._moment) / weight * seen
            self._gram -= (1.0 - FORGETTING) / weight * np.outer(seen, seen)


class Durations:
    """What steps of each size take, and the pace of the machine, which is that of all sizes together.

    A line through knots, over the logarithm of rows, whose heights are logarithms of seconds at a pace of 0. A Kalman
    filter without covariances moves knots and pace: a step that takes long is laid to whichever is known less well, so
    that a slow moment does not make the present size look dear.
    """

    def __init__(self) -> None:
        self._pace, self._pace_variance = 0.0, UNKNOWN**2
        self._knots: dict[int, _Knot] = {}
        self._num_steps = 0

    @property
    def pace(self) -> float:
        """Seconds that pass for each second of the formula."""
        return math.exp(self._pace)

    def seconds(self, num_rows: FloatArray, formula_s: Callable[[float], float], curiosity: float = 0.0) -> FloatArray:
        """Of steps with so many rows, [N], ascending. formula_s: of rows, for sizes that were never seen. curiosity:
        standard deviations by which a step may be faster than expected."""
        places = np.array([_place(rows) for rows in num_rows.tolist()])
        first = int(places[0])
        knots = [self._knot(idx, formula_s) for idx in range(first, int(places[-1]) + 2)]
        heights = np.array([knot.height for knot in knots])
        variances = np.array([self._variance(knot) for knot in knots])
        left = places.astype(np.int64) - first
        share = places - first - left
        height = (1.0 - share) * heights[left] + share * heights[left + 1]
        deviation = np.sqrt((1.0 - share) ** 2 * variances[left] + share**2 * variances[left + 1])
        return np.asarray(np.exp(self._pace + height - curiosity * deviation))

    def observe(self, num_rows: int, seconds: float, formula_s: Callable[[float], float], num_steps: int = 1) -> None:
        """`num_steps` with so many rows took as many seconds each."""
        self._num_steps += num_steps
        parts = [(weight, self._knots.setdefault(idx, self._knot(idx, formula_s))) for idx, weight in _parts(num_rows)]
        self._pace_variance = min(self._pace_variance + num_steps * PACE_DRIFT**2, UNKNOWN**2)
        variances = [self._variance(knot) for _, knot in parts]
        of_size = sum(weight**2 * variance for (weight, _), variance in zip(parts, variances, strict=True))
        total = of_size + self._pace_variance + NOISE**2 / num_steps
        height = sum(weight * knot.height for weight, knot in parts)
        surprise = min(max(math.log(seconds) - self._pace - height, -MAX_SURPRISE), MAX_SURPRISE)
        for (weight, knot), variance in zip(parts, variances, strict=True):
            gain = weight * variance / total
            knot.height += gain * surprise
            knot.variance, knot.seen_at = variance * (1.0 - weight * gain), self._num_steps
        pace_gain = self._pace_variance / total
        self._pace += pace_gain * surprise
        self._pace_variance *= 1.0 - pace_gain

    def _knot(self, idx: int, formula_s: Callable[[float], float]) -> _Knot:
        """As seen, or as the formula has it now."""
        known = self._knots.get(idx)
        return _Knot(math.log(formula_s(_rows_at(idx))), UNKNOWN**2, self._num_steps) if known is None else known

    def _variance(self, knot: _Knot) -> float:
        return min(knot.variance + SIZE_DRIFT**2 * (self._num_steps - knot.seen_at), UNKNOWN**2)


@dataclass
class _Knot:
    height: float
    variance: float
    seen_at: int  # step


@dataclass
class _Alike:
    """The latest steps, which had as many rows each. seconds: of all."""

    num_rows: int = 0
    num_steps: int = 0
    seconds: float = 0.0


class StepCost:
    """Predicts a decode step and a draft pass of one model. Seconds are never 0, so that one can divide by them."""

    def __init__(self, num_experts: int, top_k: int) -> None:
        self._num_experts, self._top_k = num_experts, top_k
        self._step = LinearCost(3)
        self._drafting = LinearCost(3)
        self._durations = Durations()
        self._alike = _Alike()
        self._passes: list[tuple[float, float, float, float]] = []  # that were not learnt from yet
        self._num_caught_up, self._num_dropped = LEFT_OUT_PRIOR, 0.0

    @property
    def is_known(self) -> bool:
        """Whether enough was seen to compare lengths."""
        return min(self._step.num_observed, self._drafting.num_observed) >= ENOUGH

    def observe_step(self, num_rows: int, seconds: float) -> None:
        if num_rows != self._alike.num_rows:
            self._learn(self._alike)
            self._alike = _Alike(num_rows)
        self._alike.num_steps += 1
        self._alike.seconds += seconds
        if self._alike.num_steps == AT_ONCE:
            self._learn(self._alike)
            self._alike = _Alike(num_rows)

    def observe_drafting(self, num_modules: int, num_module_rows: int, num_drafts: int, seconds: float) -> None:
        """A draft pass. num_module_rows: rows of all modules added up."""
        if self._passes and self._passes[-1][0] != num_modules:
            self._learn_passes()
        self._passes.append((num_modules, num_module_rows, num_drafts, seconds / self._durations.pace))
        if len(self._passes) == PASSES_AT_ONCE or not self.is_known:
            self._learn_passes()

    def observe_left_out(self, num_caught_up: int, num_dropped: int) -> None:
        """A sequence has ended. Of the rows that modules had left out, these were seen later, those never."""
        keep = 1.0 - 1.0 / LEFT_OUT_MEMORY
        self._num_caught_up = keep * self._num_caught_up + num_caught_up
        self._num_dropped = keep * self._num_dropped + num_dropped

    def step_seconds(self, num_rows: int) -> float:
        return float(self.steps_seconds(num_rows, num_rows)[0])

    def steps_seconds(self, first: int, last: int, curiosity: float = 0.0) -> FloatArray:
        """Of steps with first, first + 1, ..., last rows, [last - first + 1]. curiosity: see `Durations.seconds`."""
        return self._durations.seconds(np.arange(first, last + 1, dtype=np.float64), self._formula_s, curiosity)

    def drafting_seconds(self, num_modules: Any, num_module_rows: Numbers, num_drafts: Numbers) -> Numbers:
        """Of a pass through so many modules, a number or an array as the others."""
        of_module, of_row, of_draft = self._drafting.coefficients
        seconds: Numbers = of_module * num_modules + of_row * num_module_rows + of_draft * num_drafts
        return self._durations.pace * seconds

    def module_rows(self, num_tokens: FloatArray) -> FloatArray:
        """Rows added up over modules that sequences S cost when they draft 0, 1, ... K tokens and so gain `num_tokens`,
        float64 [S, 1 + K], a step.

        Each of k modules runs the new rows, and module j those of its last j again whose drafts were rejected. The
        others see the new rows another day, unless the sequence ends before.
        """
        max_drafts = num_tokens.shape[1] - 1
        rejected = 1.0 - np.diff(num_tokens, axis=1)  # chance that draft 1, 2, ... is not among those kept
        repaired = np.zeros_like(num_tokens)
        repaired[:, 2:] = np.cumsum(np.cumsum(rejected, axis=1), axis=1)[:, :-1]
        share = self._num_caught_up / max(self._num_caught_up + self._num_dropped, 1.0)
        num_running = np.arange(max_drafts + 1)
        rows: FloatArray = num_tokens * (num_running + share * (max_drafts - num_running)) + repaired
        return rows

    def _learn(self, alike: _Alike) -> None:
        if not alike.num_steps:
            return
        num_rows, mean_s = alike.num_rows, alike.seconds / alike.num_steps
        self._step.observe(self._features(num_rows), mean_s / self._durations.pace)
        self._durations.observe(num_rows, max(mean_s, SHORTEST), self._formula_s, alike.num_steps)

    def _learn_passes(self) -> None:
        *features, mean_s = (sum(column) / len(self._passes) for column in zip(*self._passes, strict=True))
        self._drafting.observe(features, mean_s)
        self._passes.clear()

    def _formula_s(self, num_rows: float) -> float:
        return max(self._step.seconds(self._features(num_rows)), SHORTEST)

    def _features(self, num_rows: float) -> tuple[float, float, float]:
        return 1.0, num_rows, distinct_experts(num_rows, self._num_experts, self._top_k)


def _place(num_rows: float) -> float:
    """Where a size lies among the knots: up to FEW_ROWS each has its own, then a doubling has KNOTS_PER_DOUBLING."""
    if num_rows <= FEW_ROWS:
        return float(num_rows)
    return FEW_ROWS + KNOTS_PER_DOUBLING * math.log2(num_rows / FEW_ROWS)


def _parts(num_rows: int) -> list[tuple[int, float]]:
    """The knots beside a size, and how much of its height is theirs."""
    place = _place(num_rows)
    first = int(place)
    return [(idx, share) for idx, share in ((first, 1.0 - (place - first)), (first + 1, place - first)) if share > 0.0]


def _rows_at(idx: int) -> float:
    """The inverse."""
    return float(idx) if idx <= FEW_ROWS else FEW_ROWS * 2.0 ** ((idx - FEW_ROWS) / KNOTS_PER_DOUBLING)
