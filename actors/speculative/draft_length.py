"""How many tokens to draft for each sequence: the number that gives most tokens for the time they cost. Pure.

Expected tokens of a sequence with k drafts are 1 + a1 + a1 a2 + ..., where aj is the chance that draft j is accepted if
those before it were. The price is the predicted time of the draft pass and of the step that verifies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

from actors.speculative.cost import StepCost

HYSTERESIS = 1.02  # what another choice must promise against the last one
DECIDE_EVERY = 4  # steps: deciding takes as long as a row of a small model
PROBE_EVERY = 8  # decisions after which everybody tries another length: what nobody tries is never seen again
PROBE_AT_MOST_EVERY = 32  # decisions, while tries teach nothing new
PROBE_AGAIN_AFTER = 1  # decisions, when one turned out better than expected
SURPRISE = 1.05  # by how much
WORTH_A_TRY = 0.6  # of what the best choice promises; the shortest lengths are always
LEARNING_STEPS = 12  # steps with as many sequences that try every length in turn, to learn what they cost


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
        self._num_learnt: Counter[int] = Counter()  # by the doublings of sequences: prices of few say little of many
        self._probes = _Probes(max_drafts)

    def without_rates(self, limits: Sequence[int], last: Sequence[int | None]) -> Choice | None:
        """The choice where it needs no acceptance rates; None where `choose` must decide. Call it first, once a step.

        limits, last: as in Drafting, for each sequence."""
        if self._mode == "fixed":
            return Choice(tuple(limits), "fixed")
        self._num_choices += 1
        self._num_learnt[_doublings(limits)] += 1
        known = [length for length in last if length is not None]
        if self._is_learning(limits) or self._num_choices % DECIDE_EVERY == 0 or len(known) < len(last):
            return None
        return Choice(tuple(map(min, known, limits)), "kept")

    def choose(self, sequences: Sequence[Drafting]) -> Choice:
        """The choice for this batch."""
        if self._is_learning(sequences):
            return Choice(_uniform(self._num_choices % (self.max_drafts + 1), sequences), "learning")
        best = best_lengths(sequences, self.cost)
        last = tuple(k if s.last is None else min(s.last, s.limit) for k, s in zip(best, sequences, strict=True))
        best_rate, last_rate = (tokens_per_second(each, sequences, self.cost) for each in (best, last))
        probe = self._probes.due(sequences, self.cost, best_rate, last)
        if probe is not None:
            return Choice(probe, "probe")
        if best_rate < HYSTERESIS * last_rate:
            return Choice(last, "kept")
        return Choice(best, "faster")

    def _is_learning(self, batch: Sized) -> bool:
        return self._num_learnt[_doublings(batch)] <= LEARNING_STEPS or not self.cost.is_known


class _Probes:
    """When everybody tries another length, each in turn: long ones show how often late drafts are accepted, short ones
    what a step without them costs. Prices learnt in a bad moment would otherwise keep a batch at its length for good.

    Tries that teach nothing become rarer; one that turns out better than expected is soon repeated.
    """

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._wait = self._interval = PROBE_EVERY
        self._length = 0
        self._expected: float | None = None  # what the last try promised beforehand, as a share of the best choice

    def due(
        self, sequences: Sequence[Drafting], cost: StepCost, best_rate: float, last: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """The lengths to try in this step, if any. best_rate: tokens per second that the best choice promises. last:
        the present lengths, which need no try."""
        is_better = self._expected is not None and self._promise(sequences, cost, best_rate) > SURPRISE * self._expected
        if self._expected is not None:
            self._expected = None
            self._interval = PROBE_EVERY if is_better else min(2 * self._interval, PROBE_AT_MOST_EVERY)
            self._wait = PROBE_AGAIN_AFTER if is_better else self._interval
        self._wait -= 1
        if self._wait > 0:
            return None
        if not is_better:
            self._turn(sequences, cost, best_rate, last)
        self._expected = self._promise(sequences, cost, best_rate)
        return _uniform(self._length, sequences)

    def _turn(self, sequences: Sequence[Drafting], cost: StepCost, best_rate: float, last: tuple[int, ...]) -> None:
        """To the next length that might pay."""
        for _ in range(self._max_drafts):
            self._length = (self._length + 1) % (self._max_drafts + 1)
            might_pay = self._length <= 1 or self._promise(sequences, cost, best_rate) >= WORTH_A_TRY
            if might_pay and _uniform(self._length, sequences) != last:
                return

    def _promise(self, sequences: Sequence[Drafting], cost: StepCost, best_rate: float) -> float:
        return tokens_per_second(_uniform(self._length, sequences), sequences, cost) / best_rate


def best_lengths(sequences: Sequence[Drafting], cost: StepCost) -> tuple[int, ...]:
    """The lengths that maximise expected tokens per second of this batch.

    For each depth: a later draft is never likelier to be kept than the one before it, so taking drafts in the order of
    their chances fills every sequence from the front, and one pass over the batch finds the best of these choices. The
    order leaves out that a deeper draft runs more module rows; where those are dear, another choice may be faster by a
    per cent.
    """
    ranked = _by_chance(sequences)
    num_sequences = len(sequences)
    step_s = [cost.step_seconds(num_sequences + count) for count in range(len(ranked) + 1)]
    idle_rows = num_sequences * cost.rows(0, 1.0)
    num_taken, best_depth = 0, 0
    best_rate = num_sequences / (step_s[0] + cost.drafting_seconds(0, idle_rows, 0))
    for depth in range(1, 1 + max((s.limit for s in sequences), default=0)):
        tokens, module_rows, gained = float(num_sequences), idle_rows, [1.0] * num_sequences
        for count, (chance, number, idx) in enumerate((each for each in ranked if each[1] <= depth), start=1):
            before = cost.rows(number - 1, gained[idx])
            gained[idx] += chance
            tokens += chance
            module_rows += cost.rows(number, gained[idx]) - before
            rate = tokens / (step_s[count] + cost.drafting_seconds(depth, module_rows, count))
            if rate > best_rate:
                num_taken, best_rate, best_depth = count, rate, depth
    lengths = [0] * num_sequences
    for _, _, idx in [each for each in ranked if each[1] <= best_depth][:num_taken]:
        lengths[idx] += 1
    return tuple(lengths)


def tokens_per_second(lengths: Sequence[int], sequences: Sequence[Drafting], cost: StepCost) -> float:
    """What a choice promises."""
    tokens = [1.0 + sum(_chances(s.rates[:length])) for length, s in zip(lengths, sequences, strict=True)]
    module_rows = sum(map(cost.rows, lengths, tokens))
    num_drafts = sum(lengths)
    drafting_s = cost.drafting_seconds(max(lengths), module_rows, num_drafts)
    return sum(tokens) / (cost.step_seconds(len(lengths) + num_drafts) + drafting_s)


def _doublings(batch: Sized) -> int:
    """Batches of less than twice as many sequences are alike."""
    return len(batch).bit_length()


def _uniform(length: int, sequences: Sequence[Drafting]) -> tuple[int, ...]:
    return tuple(min(length, s.limit) for s in sequences)


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
    return list(accumulate(rates, mul))
