"""What a step costs in seconds, learnt from the steps that were run. Pure: durations are given, not measured.

The expert tier reads the weights of every expert that a step touches and computes its rows: base + per_row * rows +
per_expert * distinct experts. The attention tier also has work for each sequence, whatever its rows: base +
per_row * rows + per_sequence * sequences. Where steps of a size were seen, what they took counts, not the formula. Each
tier has a pace of its own: an expert tier that others keep busy makes rows dearer, and drafts with them, before any was
tried.

A draft pass runs module after module on the attention tier, so it costs per_module * modules + per_row * rows, rows
counted once for each module, + per_draft * drafts, for each one's logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any, TypeVar

import numpy as np

from actors.speculative.durations import NOISE, Durations, Pace
from routing.load.least_squares import non_negative_fit
from routing.load.sums import FloatArray

FORGETTING = 0.98  # weight of the last observation against the one before
RIDGE = 1e-4  # keeps the fit defined while all steps look alike
REFIT_EVERY = 32  # observations, or a quarter of all while they are few: a fit takes longer than a decision
ENOUGH = 8  # observations before a prediction means something
AT_ONCE = 16  # steps of as many rows that are learnt from together: learning takes as long as a row of a small model
PASSES_AT_ONCE = 4  # draft passes through as many modules that are learnt from together: all is linear in them
SHORTEST = 1e-6  # seconds
LEFT_OUT_PRIOR = 256.0  # rows; before anything was seen, all are seen later
LEFT_OUT_MEMORY = 32.0  # sequences after whose end an old one counts for 1 / e


Numbers = TypeVar("Numbers", float, FloatArray)


def distinct_experts(num_rows: Numbers, num_experts: int, top_k: int) -> Numbers:
    """Experts of one layer that `num_rows` rows touch when the gate spreads evenly: E (1 - (1 - K / E)^rows)."""
    untouched: Numbers = (1.0 - top_k / num_experts) ** num_rows
    return num_experts * (1.0 - untouched)


def doublings(num_sequences: int) -> int:
    """Batches of less than twice as many sequences are alike."""
    return num_sequences.bit_length()


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


class TierCost:
    """What one tier takes of a step. features: of numbers of sequences and of rows, those of the formula."""

    def __init__(self, features: Callable[[int, float], tuple[float, ...]]) -> None:
        self._features = features
        self._formula = LinearCost(len(features(1, 1.0)))
        self._durations = Durations()

    @property
    def num_observed(self) -> int:
        return self._formula.num_observed

    @property
    def pace(self) -> float:
        """Seconds that pass for each second of the formula."""
        return self._durations.pace

    def observe(self, num_sequences: int, num_rows: int, seconds: float, num_steps: int) -> None:
        """`num_steps` with so many rows took as many seconds each."""
        self._formula.observe(self._features(num_sequences, num_rows), seconds / self.pace)
        formula_s = partial(self._formula_s, num_sequences)
        self._durations.observe(doublings(num_sequences), num_rows, max(seconds, SHORTEST), formula_s, num_steps)

    def seconds(self, num_sequences: int, num_rows: FloatArray, curiosity: float) -> FloatArray:
        """See `Durations.seconds`."""
        formula_s = partial(self._formula_s, num_sequences)
        return self._durations.seconds(doublings(num_sequences), num_rows, formula_s, curiosity)

    def _formula_s(self, num_sequences: int, num_rows: float) -> float:
        return max(self._formula.seconds(self._features(num_sequences, num_rows)), SHORTEST)


class DraftingCost:
    """What a draft pass takes. It has a pace of its own: sequences with much context make steps dearer, not passes."""

    def __init__(self) -> None:
        self._formula = LinearCost(3)
        self._pace = Pace()
        self._passes: list[tuple[float, float, float, float]] = []  # that were not learnt from yet

    @property
    def num_observed(self) -> int:
        return self._formula.num_observed

    def step(self) -> None:
        """A step has passed, whether it drafts or not."""
        self._pace.drift(1)

    def observe(self, num_modules: int, num_module_rows: int, num_drafts: int, seconds: float) -> None:
        """A pass; see `StepCost.observe_drafting`."""
        if self._passes and self._passes[-1][0] != num_modules:
            self._learn()
        self._passes.append((num_modules, num_module_rows, num_drafts, max(seconds, SHORTEST)))
        if len(self._passes) == PASSES_AT_ONCE or self.num_observed < ENOUGH:
            self._learn()

    def seconds(self, num_modules: Any, num_module_rows: Numbers, num_drafts: Numbers) -> Numbers:
        """See `StepCost.drafting_seconds`."""
        of_module, of_row, of_draft = self._formula.coefficients
        seconds: Numbers = of_module * num_modules + of_row * num_module_rows + of_draft * num_drafts
        return self._pace.ratio * seconds

    def _learn(self) -> None:
        num_passes = len(self._passes)
        *features, mean_s = (sum(column) / num_passes for column in zip(*self._passes, strict=True))
        self._formula.observe(features, mean_s / self._pace.ratio)
        learnt_s = max(self._formula.seconds(features), SHORTEST)
        self._pace.observe(self._pace.surprise(mean_s, math.log(learnt_s)), NOISE**2 / num_passes)
        self._passes.clear()


@dataclass
class _Alike:
    """The latest steps, which had as many rows each. attention_s, expert_s: of all."""

    num_sequences: int = 0
    num_rows: int = 0
    num_steps: int = 0
    attention_s: float = 0.0
    expert_s: float = 0.0


class StepCost:
    """Predicts a decode step and a draft pass of one model. Seconds are never 0, so that one can divide by them."""

    def __init__(self, num_experts: int, top_k: int) -> None:
        self._num_experts, self._top_k = num_experts, top_k
        self._attention, self._experts = TierCost(self._attention_features), TierCost(self._expert_features)
        self._drafting = DraftingCost()
        self._alike = _Alike()
        self._num_caught_up, self._num_dropped = LEFT_OUT_PRIOR, 0.0

    @property
    def is_known(self) -> bool:
        """Whether enough was seen to compare lengths."""
        return min(self._attention.num_observed, self._drafting.num_observed) >= ENOUGH

    def observe_step(self, num_sequences: int, num_rows: int, seconds: float, expert_s: float = 0.0) -> None:
        """A step of so many rows. expert_s: how much of its seconds the expert tier was waited for."""
        if (num_sequences, num_rows) != (self._alike.num_sequences, self._alike.num_rows):
            self._learn(self._alike)
            self._alike = _Alike(num_sequences, num_rows)
        self._drafting.step()
        self._alike.num_steps += 1
        self._alike.attention_s += seconds - expert_s
        self._alike.expert_s += expert_s
        if self._alike.num_steps == AT_ONCE:
            self._learn(self._alike)
            self._alike = _Alike(num_sequences, num_rows)

    def observe_drafting(self, num_modules: int, num_module_rows: int, num_drafts: int, seconds: float) -> None:
        """A draft pass. num_module_rows: rows of all modules added up."""
        self._drafting.observe(num_modules, num_module_rows, num_drafts, seconds)

    def observe_left_out(self, num_caught_up: int, num_dropped: int) -> None:
        """A sequence has ended. Of the rows that modules had left out, these were seen later, those never."""
        keep = 1.0 - 1.0 / LEFT_OUT_MEMORY
        self._num_caught_up = keep * self._num_caught_up + num_caught_up
        self._num_dropped = keep * self._num_dropped + num_dropped

    def step_seconds(self, num_sequences: int, num_rows: int) -> float:
        return float(self.steps_seconds(num_sequences, num_rows)[-1])

    def steps_seconds(self, num_sequences: int, most_rows: int, curiosity: float = 0.0) -> FloatArray:
        """Of steps of so many sequences with a row each, and with one row more, up to `most_rows`,
        [most_rows - num_sequences + 1]. curiosity: see `Durations.seconds`."""
        num_rows = np.arange(num_sequences, most_rows + 1, dtype=np.float64)
        attention_s, expert_s = (
            tier.seconds(num_sequences, num_rows, curiosity) for tier in (self._attention, self._experts)
        )
        return attention_s + expert_s

    def drafting_seconds(self, num_modules: Any, num_module_rows: Numbers, num_drafts: Numbers) -> Numbers:
        """Of a pass through so many modules, a number or an array as the others."""
        return self._drafting.seconds(num_modules, num_module_rows, num_drafts)

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
        for tier, seconds in ((self._attention, alike.attention_s), (self._experts, alike.expert_s)):
            tier.observe(alike.num_sequences, alike.num_rows, seconds / alike.num_steps, alike.num_steps)

    def _expert_features(self, _num_sequences: int, num_rows: float) -> tuple[float, ...]:
        return 1.0, num_rows, distinct_experts(num_rows, self._num_experts, self._top_k)

    @staticmethod
    def _attention_features(num_sequences: int, num_rows: float) -> tuple[float, ...]:
        return 1.0, num_rows, float(num_sequences)
