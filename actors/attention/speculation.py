"""Speculation: from one step's verdict to the next step's drafts. Owns acceptance rates, prices and counters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from torch import Tensor

from actors.attention.drafting import Drafter, draft_item
from actors.attention.scheduler import ScheduledSequence, Scheduler
from actors.attention.sequence import Sequence, SequenceState
from actors.speculative.acceptance import PRIOR_RATE, PRIOR_WEIGHT, global_acceptance
from actors.speculative.draft_length import Drafting, DraftLengths
from actors.speculative.stats import SpeculationStats

logger = logging.getLogger(__name__)

LOG_EVERY = 500  # steps


class Speculation:
    """The step calls `begin`, `verified` for each item, and `draft`. clock: seconds, monotonic."""

    def __init__(
        self, drafter: Drafter, scheduler: Scheduler, lengths: DraftLengths, clock: Callable[[], float]
    ) -> None:
        self._drafter, self._scheduler, self._lengths = drafter, scheduler, lengths
        self._clock = clock
        self._acceptance = global_acceptance(lengths.max_drafts)
        self._began_at = 0.0
        self._num_steps = 0
        self.stats = SpeculationStats()

    def begin(self) -> None:
        """A step begins."""
        self._began_at = self._clock()

    def verified(self, item: ScheduledSequence, num_accepted: int, hidden: Tensor) -> None:
        """An item was computed and judged. hidden: [R, H], the trunk's output at its rows that stay."""
        state = item.sequence.drafting
        if item.needs_logits:
            for counted in (self.stats, self._acceptance, state):
                counted.observe(len(item.drafts), num_accepted)
        if item.sequence.state is SequenceState.RUNNING:
            state.accepted(num_accepted)
            state.add_rows(hidden)

    def draft(self, items: SequenceOf[ScheduledSequence]) -> None:
        """Let every sequence of the step propose tokens for the next one, as many as pay."""
        self._num_steps += 1
        if self._num_steps % LOG_EVERY == 0:
            logger.debug("speculation: %s", self.stats)
        now = self._clock()
        if items and all(item.num_tokens == 1 and item.needs_logits for item in items):
            self._lengths.cost.observe_step(sum(item.num_rows for item in items), now - self._began_at)
        running = [item.sequence for item in items if item.sequence.state is SequenceState.RUNNING]
        lengths = self._choose([sequence for sequence in running if sequence.num_uncomputed_tokens == 1])
        work = [draft_item(sequence, lengths.get(sequence, 0)) for sequence in running]
        chosen = [item for item in work if item is not None]
        num_module_rows = self._drafter.run(chosen)
        if chosen and all(item.num_drafts for item in chosen):
            taken = [item.num_drafts for item in chosen]
            self._lengths.cost.observe_drafting(taken, num_module_rows, self._clock() - now)
        for sequence in running:
            self._scheduler.settle(sequence, sequence.drafting.num_settled)

    def _choose(self, sequences: SequenceOf[Sequence]) -> dict[Sequence, int]:
        if not sequences:
            return {}
        everybody = self._acceptance.rates([PRIOR_RATE] * self._lengths.max_drafts, PRIOR_WEIGHT)
        choice = self._lengths.choose([self._drafting(sequence, everybody) for sequence in sequences])
        self.stats.chose(choice.lengths, choice.reason)
        if choice.reason not in ("learning", "probe"):  # those are tries, nothing to stick to
            for sequence, length in zip(sequences, choice.lengths, strict=True):
                sequence.drafting.last_length = length
        return dict(zip(sequences, choice.lengths, strict=True))

    def _drafting(self, sequence: Sequence, everybody: SequenceOf[float]) -> Drafting:
        state = sequence.drafting
        limit = max(0, min(self._lengths.max_drafts, sequence.num_left - 1))
        return Drafting(state.acceptance.rates(everybody, PRIOR_WEIGHT), limit, state.last_length)
