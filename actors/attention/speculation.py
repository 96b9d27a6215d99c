"""Speculation: from one step's verdict to the next step's drafts. Owns acceptance rates, prices and counters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from torch import Tensor

from actors.attention.drafting import MAX_UNSETTLED, Drafter, DraftItem, draft_items, num_steps_before_due
from actors.attention.scheduler import ScheduledSequence, Scheduler
from actors.attention.sequence import Sequence, SequenceState
from actors.speculative.acceptance import PRIOR_WEIGHT, global_acceptance
from actors.speculative.draft_length import Drafting, DraftLengths
from actors.speculative.stats import SpeculationCounts, SpeculationStats

logger = logging.getLogger(__name__)

LOG_EVERY = 500  # steps


class Speculation:
    """The step calls `begin`, `verified` for each item, `draft`, and `end`."""

    def __init__(
        self,
        drafter: Drafter,
        scheduler: Scheduler,
        lengths: DraftLengths,
        clock: Callable[[], float],
        expert_clock: Callable[[], float],
    ) -> None:
        """clock: seconds, monotonic. expert_clock: those that the expert tier was waited for."""
        self._drafter, self._scheduler, self._lengths = drafter, scheduler, lengths
        self._clock, self._expert_clock = clock, expert_clock
        self._acceptance = global_acceptance(lengths.max_drafts)
        self._began_at = self._expert_began_at = 0.0
        # Sequences and rows of this step, where its price says something of steps like it.
        self._priced: tuple[int, int] | None = None
        self._resting: list[Sequence] = []  # that drafted nothing in the last step, and need not for `_rest_steps`
        self._rest_steps = 0
        self._num_steps = 0
        self._draft_s = 0.0
        self.stats = SpeculationStats()

    def begin(self) -> None:
        """A step begins, with all that belongs to it."""
        self._priced = None
        self._began_at, self._expert_began_at = self._clock(), self._expert_clock()

    def verified(self, item: ScheduledSequence, num_accepted: int, hidden: Tensor) -> None:
        """An item was computed and judged. hidden: [R, H], the trunk's output at its rows that stay."""
        state = item.sequence.drafting
        if item.needs_logits:
            self.stats.observe(len(item.drafts), num_accepted)
            state.observe(len(item.drafts), num_accepted)
        if item.drafts:
            self._acceptance.observe(len(item.drafts), num_accepted)
        if item.sequence.state is SequenceState.RUNNING:
            state.accepted(num_accepted)
            state.add_rows(hidden)

    def draft(self, items: SequenceOf[ScheduledSequence]) -> None:
        """Let every sequence of the step propose tokens for the next one, as many as pay."""
        self._num_steps += 1
        if self._num_steps % LOG_EVERY == 0:
            logger.debug("speculation: %s", self.stats)
        if items and all(item.num_tokens == 1 and item.needs_logits for item in items):
            self._priced = len(items), sum(item.num_rows for item in items)
        running = [item.sequence for item in items if item.sequence.state is SequenceState.RUNNING]
        if self._rests(running):
            return
        if any(item.drafts for item in items):
            self._acceptance.forget()
        chosen_at = self._clock()
        lengths = self._choose([sequence for sequence in running if sequence.num_uncomputed_tokens == 1])
        self._began_at += self._clock() - chosen_at  # to decide takes long, and happens now and then
        work = draft_items(running, lengths)
        self._run(work)
        for sequence in running:
            self._scheduler.settle(sequence, sequence.drafting.num_settled)
        is_idle = not work and all(sequence.drafting.last_length == 0 for sequence in running)
        self._resting, self._rest_steps = (running, num_steps_before_due(running)) if is_idle else ([], 0)

    def end(self) -> None:
        """The step is over and its news are told. What it took beside the draft pass is its price; also what is the
        same for all sizes counts, for tokens per second are compared."""
        if self._priced is not None:
            expert_s = self._expert_clock() - self._expert_began_at
            self._lengths.cost.observe_step(*self._priced, self._clock() - self._began_at, expert_s)
        self._priced = None

    def ended(self, sequence: Sequence) -> None:
        """Nothing more will be drafted for it."""
        self._resting, self._rest_steps = [], 0
        state = sequence.drafting
        num_caught_up, num_dropped = state.num_caught_up, state.num_left_out
        if not num_caught_up and not num_dropped:  # as it would have been with fewer drafts
            num_dropped = sequence.num_completion_tokens % MAX_UNSETTLED
            num_caught_up = sequence.num_completion_tokens - num_dropped
        self._lengths.cost.observe_left_out(num_caught_up, num_dropped)

    def counts(self) -> SpeculationCounts:
        """A copy for other threads, which may be a step old."""
        return SpeculationCounts(self.stats.counts, self.stats.lengths.copy(), self.stats.reasons.copy(), self._draft_s)

    def _rests(self, running: list[Sequence]) -> bool:
        """Whether there is nothing to do after a step in which the same sequences decoded as in the last one, which had
        nothing to do either. Most steps are such where drafts do not pay, and must not be slower for it."""
        if self._priced is None or self._rest_steps == 0 or running != self._resting:
            return False
        if not self._lengths.stays(len(running)):
            return False
        self._rest_steps -= 1
        self.stats.kept_none(len(running))
        return True

    def _run(self, work: SequenceOf[DraftItem]) -> None:
        """Draft, and learn what it costs."""
        if not work:
            return
        began_at = self._clock()
        done = self._drafter.run(work)
        took_s = self._clock() - began_at
        self._began_at += took_s  # a pass has its own price
        self._draft_s += took_s
        if done.num_modules and all(item.num_drafts for item in work):
            num_drafts = sum(item.num_drafts for item in work)
            self._lengths.cost.observe_drafting(done.num_modules, done.num_module_rows, num_drafts, took_s)

    def _choose(self, sequences: SequenceOf[Sequence]) -> dict[Sequence, int]:
        if not sequences:
            return {}
        limits = [max(0, min(self._lengths.max_drafts, sequence.num_left - 1)) for sequence in sequences]
        last = [sequence.drafting.last_length for sequence in sequences]
        choice = self._lengths.without_rates(limits, last)
        if choice is None:
            choice = self._lengths.choose(self._drafting(sequences, limits))
        self.stats.chose(choice.lengths, choice.reason)
        if choice.reason not in ("learning", "probe"):  # those are tries, nothing to stick to
            for sequence, length in zip(sequences, choice.lengths, strict=True):
                sequence.drafting.last_length = length
        return dict(zip(sequences, choice.lengths, strict=True))

    def _drafting(self, sequences: SequenceOf[Sequence], limits: SequenceOf[int]) -> list[Drafting]:
        everybody = self._acceptance.chained_rates()
        return [
            Drafting(
                state.acceptance.rates(everybody, PRIOR_WEIGHT),
                limit,
                state.last_length,
                state.num_left_out,
            )
            for state, limit in zip((sequence.drafting for sequence in sequences), limits, strict=True)
        ]
