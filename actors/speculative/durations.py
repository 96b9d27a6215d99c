"""What one tier takes of steps by their rows, learnt from steps that were run: a line through knots. Pure.

Steps with as many rows take longer where more sequences have them, so each level, which is as many sequences to a
doubling, has a line of its own. Nothing is inferred from one level to another but the pace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from routing.load.sums import FloatArray

# Standard deviations of logarithms, as of a machine whose neighbours come and go.
NOISE = 0.1  # of one step around what it should take
PACE_DRIFT = 0.06  # of the whole tier, from step to step
SIZE_DRIFT = 0.001  # of one size against the others, from step to step
UNKNOWN = 0.2  # of a size that was never seen around the formula
MAX_SURPRISE = 0.4  # what one step can prove at most
FEW_ROWS, KNOTS_PER_DOUBLING = 4, 2  # see `_place`


class Pace:
    """How much longer everything takes at present than was learnt: the logarithm, and its variance, which grows from
    step to step."""

    def __init__(self) -> None:
        self.log, self.variance = 0.0, UNKNOWN**2

    @property
    def ratio(self) -> float:
        """Seconds that pass for each one learnt."""
        return math.exp(self.log)

    def drift(self, num_steps: int) -> None:
        """So many steps have passed."""
        self.variance = min(self.variance + num_steps * PACE_DRIFT**2, UNKNOWN**2)

    def surprise(self, seconds: float, learnt_log: float) -> float:
        """By how much the logarithm of `seconds` differs from what was to be expected."""
        return min(max(math.log(seconds) - self.log - learnt_log, -MAX_SURPRISE), MAX_SURPRISE)

    def observe(self, surprise: float, variance_of_others: float) -> None:
        """Take the share that is the pace's. variance_of_others: of all else that may explain a surprise."""
        gain = self.variance / (self.variance + variance_of_others)
        self.log += gain * surprise
        self.variance *= 1.0 - gain


class Durations:
    """What steps of each size take of a tier, and the tier's pace, which is that of all sizes together.

    For each level a line through knots, over the logarithm of rows, whose heights are logarithms of seconds at a pace
    of 0. A Kalman filter without covariances moves knots and pace: a step that takes long is laid to whichever is known
    less well, so that a slow moment does not make the present size look dear.
    """

    def __init__(self) -> None:
        self._pace = Pace()
        self._knots: dict[tuple[int, int], _Knot] = {}  # of a level, by place
        self._num_steps = 0

    @property
    def pace(self) -> float:
        """Seconds that pass for each second of the formula."""
        return self._pace.ratio

    def seconds(
        self, level: int, num_rows: FloatArray, formula_s: Callable[[float], float], curiosity: float = 0.0
    ) -> FloatArray:
        """Of steps with so many rows, [N], ascending. formula_s: of rows, for sizes that were never seen at this level.
        curiosity: standard deviations by which a step may be faster than expected."""
        places = np.array([_place(rows) for rows in num_rows.tolist()])
        first = int(places[0])
        knots = [self._knot(level, idx, formula_s) for idx in range(first, int(places[-1]) + 2)]
        heights = np.array([knot.height for knot in knots])
        variances = np.array([self._variance(knot) for knot in knots])
        left = places.astype(np.int64) - first
        share = places - first - left
        height = (1.0 - share) * heights[left] + share * heights[left + 1]
        deviation = np.sqrt((1.0 - share) ** 2 * variances[left] + share**2 * variances[left + 1])
        return np.asarray(np.exp(self._pace.log + height - curiosity * deviation))

    def observe(
        self, level: int, num_rows: int, seconds: float, formula_s: Callable[[float], float], num_steps: int = 1
    ) -> None:
        """`num_steps` with so many rows took as many seconds each."""
        self._num_steps += num_steps
        parts = [
            (weight, self._knots.setdefault((level, idx), self._knot(level, idx, formula_s)))
            for idx, weight in _parts(num_rows)
        ]
        self._pace.drift(num_steps)
        variances = [self._variance(knot) for _, knot in parts]
        of_size = sum(weight**2 * variance for (weight, _), variance in zip(parts, variances, strict=True))
        of_noise = NOISE**2 / num_steps
        total = of_size + self._pace.variance + of_noise
        surprise = self._pace.surprise(seconds, sum(weight * knot.height for weight, knot in parts))
        for (weight, knot), variance in zip(parts, variances, strict=True):
            gain = weight * variance / total
            knot.height += gain * surprise
            knot.variance, knot.seen_at = variance * (1.0 - weight * gain), self._num_steps
        self._pace.observe(surprise, of_size + of_noise)

    def _knot(self, level: int, idx: int, formula_s: Callable[[float], float]) -> _Knot:
        """As seen, or as the formula has it now."""
        known = self._knots.get((level, idx))
        return _Knot(math.log(formula_s(_rows_at(idx))), UNKNOWN**2, self._num_steps) if known is None else known

    def _variance(self, knot: _Knot) -> float:
        return min(knot.variance + SIZE_DRIFT**2 * (self._num_steps - knot.seen_at), UNKNOWN**2)


@dataclass
class _Knot:
    height: float
    variance: float
    seen_at: int  # step


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
