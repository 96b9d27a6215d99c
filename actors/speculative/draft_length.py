"""How many tokens to draft for each sequence: the number that gives most tokens for the time they cost. Pure.

Expected tokens of a sequence with k drafts are 1 + a1 + a1 a2 + ..., where aj is the chance that draft j is accepted if
those before it were. The price is the predicted time of the draft pass and of the step that verifies. What counts of a
batch is the harmonic mean of its sequences' tokens: a request is served when all its tokens are there, so seconds add
up over requests, not tokens over steps. Serving the easy ones first would fill the batch with those that are slow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actors.speculative.cost import StepCost, doublings
from routing.load.sums import FloatArray

HYSTERESIS = 1.02  # what another choice must promise against the last one
WORTH_DRAFTING = 1.03  # what drafts must promise against none: rates and prices are estimates, and none needs neither
DECIDE_EVERY = 8  # steps: deciding takes as long as a row of a small model
CURIOSITY = 0.5  # standard deviations
PROBE_EVERY = 4  # decisions after which another length is tried: what nobody tries is never seen again
PROBE_AT_MOST_EVERY = 32  # decisions, while tries teach nothing new
PROBE_NEAR_EQUALS_EVERY = 16  # at most, where the length tried promises WORTH_A_FULL_TRY: it costs next to nothing
PROBE_AGAIN_AFTER = 1  # decisions, when one turned out better than expected
SURPRISE = 1.05  # by how much
WORTH_A_TRY = 0.6  # of what the best choice promises; the shortest lengths are always
WORTH_A_FULL_TRY = 0.9  # of what the best choice promises
TRIED_BY = 4  # else longer drafts are tried by one sequence in so many, with the fewest rows to catch up
LEARNING_STEPS = 128  # steps with as many sequences that try every length in turn, to learn what they cost


@dataclass(frozen=True)
class Drafting:
    """What the choice needs to know of one sequence. rates: conditional acceptance by position. limit: most drafts it
    can use. last: its length in the last choice, None for a newcomer. num_waiting: rows that modules have left
    out, added up over them."""

    rates: Sequence[float]
    limit: int
    last: int | None
    num_waiting: int = 0


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
        self._num_learnt[doublings(len(limits))] += 1
        known = [length for length in last if length is not None]
        if self._is_learning(len(limits)) or len(known) < len(last):
            return None
        # While nobody drafts there is nothing to learn, and the choice stays what it was.
        if self._num_choices % DECIDE_EVERY == 0 and (any(known) or not self._probes.pass_by()):
            return None
        return Choice(tuple(map(min, known, limits)), "kept")

    def stays(self, num_sequences: int) -> bool:
        """Whether to draft nothing, which was the last choice, is also the next one for the same sequences. If so, it
        counts as that choice; if not, nothing has happened."""
        is_due = (self._num_choices + 1) % DECIDE_EVERY == 0
        if self._mode == "fixed" or is_due or self._is_learning(num_sequences):
            return False
        self._num_choices += 1
        return True

    def choose(self, sequences: Sequence[Drafting]) -> Choice:
        """The choice for this batch."""
        if self._is_learning(len(sequences)):
            return Choice(_uniform(self._num_choices % (self.max_drafts + 1), sequences), "learning")
        outlook = Outlook(sequences, self.cost, CURIOSITY)
        best = _worthwhile(outlook)
        last = tuple(k if s.last is None else min(s.last, s.limit) for k, s in zip(best, sequences, strict=True))
        best_rate, last_rate = map(outlook.tokens_per_second, (best, last))
        probe = self._probes.due(sequences, outlook, best_rate, last)
        if probe is not None:
            return Choice(probe, "probe")
        # To draft nothing is the certain choice: it need not promise more.
        is_faster = best_rate >= (HYSTERESIS if any(best) else 1.0) * last_rate
        return Choice(best, "faster") if is_faster and best != last else Choice(last, "kept")

    def _is_learning(self, num_sequences: int) -> bool:
        return self._num_learnt[doublings(num_sequences)] <= LEARNING_STEPS or not self.cost.is_known


class _Probes:
    """When another length is tried, each in turn: long ones show how often late drafts are accepted, short ones
    what a step without them costs. Prices learnt in a bad moment would otherwise keep a batch at its length for good.

    Tries that teach nothing become rarer; one that turns out better than expected is soon repeated.
    """

    def __init__(self, max_drafts: int) -> None:
        self._max_drafts = max_drafts
        self._wait = self._interval = PROBE_EVERY
        self._length = 0
        self._expected: float | None = None  # what the last try promised beforehand, as a share of the best choice

    def pass_by(self) -> bool:
        """Whether this decision may be left out, because no try is due and none is to be judged."""
        if self._wait <= 1 or self._expected is not None:
            return False
        self._wait -= 1
        return True

    def due(
        self, sequences: Sequence[Drafting], outlook: Outlook, best_rate: float, last: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """The lengths to try in this step, if any. best_rate: tokens per second that the best choice promises. last:
        the present lengths, which need no try."""
        is_better = (
            self._expected is not None and self._promise(sequences, outlook, best_rate) > SURPRISE * self._expected
        )
        if self._expected is not None:
            longest = PROBE_NEAR_EQUALS_EVERY if self._expected >= WORTH_A_FULL_TRY else PROBE_AT_MOST_EVERY
            self._expected = None
            self._interval = PROBE_EVERY if is_better else min(2 * self._interval, longest)
            self._wait = PROBE_AGAIN_AFTER if is_better else self._interval
        self._wait -= 1
        if self._wait > 0:
            return None
        if not is_better:
            self._turn(sequences, outlook, best_rate, last)
        self._expected = self._promise(sequences, outlook, best_rate)
        return _try(self._length, sequences, last, 1 if self._expected >= WORTH_A_FULL_TRY else TRIED_BY)

    def _turn(self, sequences: Sequence[Drafting], outlook: Outlook, best_rate: float, last: tuple[int, ...]) -> None:
        """To the next length that might pay."""
        for _ in range(self._max_drafts):
            self._length = (self._length + 1) % (self._max_drafts + 1)
            might_pay = self._length <= 1 or self._promise(sequences, outlook, best_rate) >= WORTH_A_TRY
            if might_pay and _uniform(self._length, sequences) != last:
                return

    def _promise(self, sequences: Sequence[Drafting], outlook: Outlook, best_rate: float) -> float:
        return outlook.tokens_per_second(_uniform(self._length, sequences)) / best_rate


class Outlook:
    """What each number of drafts would come to, for each sequence S of a batch. K: the most drafts.

    tokens, module_rows: float64 [S, 1 + K], expected in a step.
    """

    def __init__(self, sequences: Sequence[Drafting], cost: StepCost, curiosity: float = 0.0) -> None:
        """curiosity: standard deviations by which a step may be faster than expected. Only a look tells whether a size
        that was not seen for long has become cheaper."""
        self._cost = cost
        self._limits = np.array([s.limit for s in sequences])
        most = len(sequences) + int(self._limits.sum())
        self._step_s = cost.steps_seconds(len(sequences), most, curiosity)  # by the number of drafts
        chances = np.cumprod(np.array([s.rates for s in sequences]), axis=1)  # that each draft is kept
        self.tokens = np.ones((len(sequences), 1 + chances.shape[1]))
        np.cumsum(chances, axis=1, out=self.tokens[:, 1:])
        self.tokens[:, 1:] += 1.0
        self.module_rows = cost.module_rows(self.tokens)

    def tokens_per_second(self, lengths: Sequence[int]) -> float:
        """What a choice promises, of all sequences."""
        chosen = np.arange(len(lengths)), np.array(lengths)
        num_drafts = sum(lengths)
        step_s = float(self._step_s[num_drafts])
        drafting_s = self._cost.drafting_seconds(max(lengths), float(self.module_rows[chosen].sum()), float(num_drafts))
        return len(lengths) ** 2 / float((1.0 / self.tokens[chosen]).sum()) / (step_s + drafting_s)

    def best_lengths(self) -> tuple[int, ...]:
        """The lengths that maximise expected tokens per second of this batch.

        For each depth: a later draft never gains more than the one before it, so taking drafts in the order of their
        gains fills every sequence from the front, and one pass over the batch finds the best of these choices. The
        order leaves out that a deeper draft runs more module rows; where those are dear, another choice may be faster
        by a per cent.
        """
        gains = -np.diff(1.0 / self.tokens, axis=1)  # of a sequence's steps for each of its tokens
        numbers, sequences = self._ranked(gains)
        of_drafts = sequences, numbers - 1
        num_sequences, depths = len(self.tokens), np.arange(self.tokens.shape[1])[:, None]
        is_taken = numbers <= depths  # [depths, drafts]
        num_drafts = _running(is_taken)
        steps_per_token = num_sequences - _running(is_taken * gains[of_drafts])
        module_rows = self.module_rows[:, 0].sum() + _running(is_taken * np.diff(self.module_rows, axis=1)[of_drafts])
        seconds = self._step_s[num_drafts.astype(np.int64)]
        seconds = seconds + self._cost.drafting_seconds(depths, module_rows, num_drafts)
        depth, count = np.unravel_index((steps_per_token * seconds).argmin(), seconds.shape)
        best = sequences[:count][is_taken[depth, :count]]
        return tuple(np.bincount(best, minlength=num_sequences).tolist())

    def _ranked(self, gains: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every draft that a sequence can use: its number from 1 and its sequence, those that gain most first and a
        sequence's in their order."""
        sequences, columns = np.nonzero(np.arange(gains.shape[1]) < self._limits[:, None])
        order = np.lexsort((sequences, columns, -gains[sequences, columns]))
        return columns[order] + 1, sequences[order]


def _worthwhile(outlook: Outlook) -> tuple[int, ...]:
    """The best lengths, or none where drafts would gain too little."""
    best = outlook.best_lengths()
    none = (0,) * len(best)
    best_rate, plain_rate = map(outlook.tokens_per_second, (best, none))
    return best if best_rate >= WORTH_DRAFTING * plain_rate else none


def _running(values: NDArray[Any]) -> FloatArray:
    """Sums of the first 0, 1, ... values of each row."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _uniform(length: int, sequences: Sequence[Drafting]) -> tuple[int, ...]:
    return tuple(min(length, s.limit) for s in sequences)


def _try(length: int, sequences: Sequence[Drafting], last: tuple[int, ...], tried_by: int) -> tuple[int, ...]:
    """This length for all that draft more at present, and for one in `tried_by` of those that draft less."""
    wanted = _uniform(length, sequences)
    longer = [idx for idx, (new, old) in enumerate(zip(wanted, last, strict=True)) if new > old]
    longer.sort(key=lambda idx: sequences[idx].num_waiting)
    trying = set(longer[: math.ceil(len(longer) / tried_by)])
    return tuple(
        new if idx in trying else min(new, old) for idx, (new, old) in enumerate(zip(wanted, last, strict=True))
    )
