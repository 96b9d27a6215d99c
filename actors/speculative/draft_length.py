"""How many tokens to draft for each sequence: the number that gives most tokens for the time they cost. Pure.

Expected tokens of a sequence with k drafts are 1 + a1 + a1 a2 + ..., where aj is the chance that draft j is accepted if
those before it were. The price is the predicted time of the draft pass and of the step that verifies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actors.speculative.cost import StepCost

HYSTERESIS = 1.02  # what another choice must promise against the last one
PROBE_EVERY = 32  # steps after which everybody tries another length: what nobody tries is never seen again
LEARNING_STEPS = 24  # steps that try every length in turn, to learn what they cost


@dataclass(frozen=True)
class Drafting:
    """What the choice needs to know of one sequence. rates: conditional acceptance by position. limit: most drafts it
    can use. last: its length in the last choice, None for a newcomer."""

    rates: Sequence[float]
    limit: int
    last: int | None


@dataclass(frozen=True)
class Choice:
    """lengths: drafts for each sequence, in the order given. reason: why, for metrics and logs."""

    lengths: tuple[int, ...]
    reason: Literal["fixed", "learning", "probe", "kept", "faster"]


class DraftLengths:
    """Chooses once a step. Owns the count of steps and nothing of the sequences."""

    def __init__(self, mode: Literal["adaptive", "fixed"], max_drafts: int, cost: StepCost) -> None:
        self._mode = mode
        self.max_drafts = max_drafts
        self.cost = cost
        self._num_choices = 0

    def choose(self, sequences: Sequence[Drafting]) -> Choice:
        if self._mode == "fixed":
            return Choice(tuple(s.limit for s in sequences), "fixed")
        self._num_choices += 1
        if self._num_choices <= LEARNING_STEPS or not self.cost.is_known:
            length = self._num_choices % (self.max_drafts + 1)
            return Choice(tuple(min(length, s.limit) for s in sequences), "learning")
        best = best_lengths(sequences, self.cost)
        last = tuple(k if s.last is None else min(s.last, s.limit) for k, s in zip(best, sequences, strict=True))
        if self._num_choices % PROBE_EVERY == 0:
            return Choice(self._probe(sequences), "probe")
        if tokens_per_second(best, sequences, self.cost) < HYSTERESIS * tokens_per_second(last, sequences, self.cost):
            return Choice(last, "kept")
        return Choice(best, "faster")

    def _probe(self, sequences: Sequence[Drafting]) -> tuple[int, ...]:
        """Each length in turn: long ones show how often late drafts are accepted, short ones what a step without them
        costs. Prices learnt in a bad moment would otherwise keep a batch at its length for good."""
        length = self._num_choices // PROBE_EVERY % (self.max_drafts + 1)
        return tuple(min(length, s.limit) for s in sequences)


def best_lengths(sequences: Sequence[Drafting], cost: StepCost) -> tuple[int, ...]:
    """The lengths that maximise expected tokens per second of this batch.

    A later draft is never likelier to be kept than the one before it, so taking drafts in the order of their chances
    fills every sequence from the front, and one pass over the batch finds the best of these choices. The order leaves
    out that a deeper draft runs more module rows; where those are dear, another choice may be faster by a per cent.
    """
    candidates = _by_chance(sequences)
    tokens = len(sequences) + np.cumsum([0.0, *(chance for chance, _, _ in candidates)])
    num_rows = len(sequences) + np.arange(len(candidates) + 1, dtype=np.float64)
    module_rows = np.cumsum([0.0, *(cost.module_rows[k] - cost.module_rows[k - 1] for _, k, _ in candidates)])
    num_drafts = int(np.argmax(tokens / cost.seconds(num_rows, module_rows)))
    taken = Counter(idx for _, _, idx in candidates[:num_drafts])
    return tuple(taken[idx] for idx in range(len(sequences)))


def tokens_per_second(lengths: Sequence[int], sequences: Sequence[Drafting], cost: StepCost) -> float:
    """What a choice promises."""
    chances = (_chances(s.rates[:length]) for length, s in zip(lengths, sequences, strict=True))
    tokens = len(lengths) + sum(map(sum, chances))
    return tokens / (cost.step_seconds(len(lengths) + sum(lengths)) + cost.drafting_seconds(lengths))


def _by_chance(sequences: Sequence[Drafting]) -> list[tuple[float, int, int]]:
    """(chance that a draft is kept, its number from 1, index of its sequence), the likeliest first and a sequence's in
    their order."""
    ranked = [
        (-chance, number, idx)
        for idx, s in enumerate(sequences)
        for number, chance in enumerate(_chances(s.rates[: s.limit]), start=1)
    ]
    return [(-negative, number, idx) for negative, number, idx in sorted(ranked)]


def _chances(rates: Sequence[float]) -> list[float]:
    """Chance that each draft is kept: products of the conditional rates."""
    chances, chance = [], 1.0
    for rate in rates:
        chance *= rate
        chances.append(chance)
    return chances
