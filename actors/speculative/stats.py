"""Counters of speculation: drafted and accepted by position, and the lengths chosen with their reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.messages import DraftCounts

ONE_PLAIN_STEP = DraftCounts(1, (), ())  # the news of every sequence in every step, where nothing is drafted


@dataclass(frozen=True)
class SpeculationCounts:
    """Since birth. lengths: sequences given so many drafts. reasons: how often each explained a choice.
    draft_s: seconds of draft passes."""

    drafts: DraftCounts
    lengths: Mapping[int, int]
    reasons: Mapping[str, int]
    draft_s: float


class DraftTally:
    """A DraftCounts that grows: every sequence has a verification in every step."""

    __slots__ = ("_accepted", "_drafted", "num_steps")

    def __init__(self) -> None:
        self.num_steps = 0
        self._drafted: list[int] = []
        self._accepted: list[int] = []

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """One sequence's drafts of one step were verified."""
        self.num_steps += 1
        if not num_drafts:
            return
        if num_drafts > len(self._drafted):
            self._drafted += [0] * (num_drafts - len(self._drafted))
            self._accepted += [0] * (num_drafts - len(self._accepted))
        for position in range(num_drafts):
            self._drafted[position] += 1
            self._accepted[position] += position < num_accepted

    @property
    def counts(self) -> DraftCounts:
        return DraftCounts(self.num_steps, tuple(self._drafted), tuple(self._accepted))

    def take(self) -> DraftCounts:
        """What was counted since the last call."""
        if not self._drafted:
            num_steps, self.num_steps = self.num_steps, 0
            return ONE_PLAIN_STEP if num_steps == 1 else DraftCounts(num_steps, (), ())
        counts = self.counts
        self.num_steps = 0
        self._drafted.clear()
        self._accepted.clear()
        return counts


class SpeculationStats(DraftTally):
    """Since birth. reasons: how often each explained a choice of lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()

    def chose(self, lengths: Sequence[int], reason: str) -> None:
        for length in lengths:
            self.lengths[length] += 1
        self.reasons[reason] += 1

    def kept_none(self, num_sequences: int) -> None:
        """So many go on without drafts."""
        self.lengths[0] += num_sequences
        self.reasons["kept"] += 1

    def __str__(self) -> str:
        """One line for the log."""
        counts = self.counts
        rates = " ".join(f"{a / d:.2f}" for a, d in zip(counts.accepted, counts.drafted, strict=True) if d)
        chosen = " ".join(f"{length}:{count}" for length, count in sorted(self.lengths.items()))
        why = " ".join(f"{reason}:{count}" for reason, count in sorted(self.reasons.items()))
        return (
            f"{counts.num_steps} verifications, {counts.mean_acceptance_length:.2f} tokens each; accepted of those"
            f" drafted by position {rates or '-'}; lengths chosen {chosen or '-'}; because {why or '-'}"
        )
